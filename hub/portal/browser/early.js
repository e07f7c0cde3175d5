// The ticket is asked for while the rest of the page is still on its way.
window.firstTicket = fetch(document.currentScript.dataset.ticket, { method: "POST" });
// whoever takes it deals with its failure
window.firstTicket.catch(() => {});
