"""ICAT+, the portal before an ICAT, through its own client. What it reads, its account and its limits: docs/sources/icatplus.md."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from icat_plus_client import ApiClient, Configuration
from icat_plus_client.api import CatalogueApi, SessionApi, UserManagementApi
from icat_plus_client.models.credentials import Credentials
from icat_plus_client.models.instrumentscientist import Instrumentscientist
from icat_plus_client.rest import RESTResponse

from etl.adapters.http import Http, Rows
from etl.adapters.icat import Catalogue
from etl.frames import Extract, SourceError, secret


class IcatPlus(Catalogue):
    def read(self) -> Extract:
        password, rows = secret(self.password_file), Rows(self.url)
        with Http(self, password) as http:
            client = ApiClient(Configuration(host=self.url))
            # time-outs, attempts, limits and errors are those of all sources
            client.rest_client = SimpleNamespace(request=partial(_request, http))  # type: ignore[assignment]
            sessions = SessionApi(client)
            said = Credentials(plugin=self.plugin, username=self.username, password=password)
            session = sessions.session_post(said).to_dict()["sessionId"]
            http.secrets.append(session)
            try:
                self._read(http, client, session, rows)
            finally:
                with suppress(SourceError):
                    sessions.session_session_id_delete(session)
        return rows.extract()

    def _read(self, http: Http, client: ApiClient, session: str, rows: Rows) -> None:
        catalogue, people = CatalogueApi(client), UserManagementApi(client)
        for instrument in catalogue.catalogue_instruments_get():
            self.add_instrument(rows, instrument.to_dict())

        def fetch(done: int, _: Any) -> tuple[int, list[Any]]:
            limit, skip = str(self.page_size), str(done)
            found = [each.to_dict() for each in catalogue.catalogue_session_id_investigation_get(session, limit=limit, skip=skip)]
            return (found[0]["meta"]["page"]["total"] if found else done), found

        self.add_investigations(rows, http.pages("investigations", "id", fetch))
        for each in map(Instrumentscientist.to_dict, people.catalogue_session_id_instrumentscientist_get(session)):
            user_id = self.add_user(rows, each["user"])
            rows.add("instrument_scientist", instrument_id=each["instrument"]["name"], user_id=user_id)
        # only here with ORCID iD and affiliation
        for user in catalogue.catalogue_session_id_user_get(session):
            if user.name in rows.tables.get("user", {}):
                self.add_user(rows, {**user.to_dict(), "orcidId": user.orcid, "affiliation": user.affilation})


def _request(http: Http, method: str, url: str, headers: Any = None, body: Any = None, **_: object) -> RESTResponse:
    answer = http.send(method, url.removeprefix(http.web.url), headers=headers, json=body)
    return RESTResponse(SimpleNamespace(status=200, reason="OK", data=answer, headers={"content-type": "application/json"}))
