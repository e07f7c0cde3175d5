// An OpenID provider for the tests. Its settings come as one JSON argument: {port, host, clients, accounts, lifetimeSeconds}.
// Anybody with an account signs on with their id and any password. Tests change it at /test/*, as its operators and users would.
import http from "node:http";
import { importJWK, SignJWT, exportJWK, generateKeyPair } from "jose";
import { Provider } from "oidc-provider";

const settings = JSON.parse(process.argv[2]);
const issuer = `http://${settings.host}:${settings.port}`;
const accounts = new Map(Object.entries(settings.accounts));
const say = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));

const { privateKey } = await generateKeyPair("RS256", { extractable: true });
const key = { ...(await exportJWK(privateKey)), kid: "tests", alg: "RS256", use: "sig" };

const provider = new Provider(issuer, {
  clients: settings.clients,
  jwks: { keys: [key] },
  cookies: { keys: ["only for tests"] },
  pkce: { required: () => true },
  scopes: ["openid", "offline_access"],
  claims: { openid: ["sub"], profile: ["name", "preferred_username", "orcid"], email: ["email", "email_verified"] },
  features: {
    devInteractions: { enabled: true },
    backchannelLogout: { enabled: true },
    revocation: { enabled: true },
    rpInitiatedLogout: { enabled: true },
  },
  // a refresh token is used once: whoever sends one twice loses the session
  rotateRefreshToken: true,
  issueRefreshToken: async (ctx, client) => client.grantTypeAllowed("refresh_token"),
  ttl: { AccessToken: () => settings.lifetimeSeconds, IdToken: 3600, RefreshToken: 3600, Session: 3600, Grant: 3600, Interaction: 3600 },
  // by itself it calls no address of this machine
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
  // nobody is asked for consent
  async loadExistingGrant(ctx) {
    const { client, session, provider, result } = ctx.oidc;
    const known = result?.consent?.grantId || session.grantIdFor(client.clientId);
    if (known) return provider.Grant.find(known);
    const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope("openid profile email");
    await grant.save();
    return grant;
  },
  async findAccount(ctx, id) {
    const claims = accounts.get(id);
    return claims && { accountId: id, claims: async () => ({ sub: id, ...claims }) };
  },
});
provider.on("grant.success", (ctx) => say("grant", { type: ctx.oidc.params.grant_type }));
provider.on("grant.error", (ctx, error) => say("refused", { error: error.message, detail: error.error_detail }));
provider.on("server_error", (ctx, error) => say("trouble", { error: error.stack }));
provider.on("backchannel.error", (ctx, error) => say("trouble", { error: `${error} ${error.cause}` }));

const actions = {
  // {id, claims}: an account as it is from now on; without claims it is gone
  account: ({ id, claims }) => void (claims ? accounts.set(id, claims) : accounts.delete(id)),
  // {claims, header}: a token with the provider's own signature, or with another key's or none
  async sign({ claims, header = {} }) {
    if (header.alg === "none") return [header, claims].map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".") + ".";
    const stranger = header.stranger && (await generateKeyPair("RS256")).privateKey;
    const { stranger: _, ...rest } = header;
    const token = new SignJWT(claims).setProtectedHeader({ alg: "RS256", kid: "tests", ...rest });
    return token.sign(stranger || (await importJWK(key)));
  },
};

http
  .createServer(async (request, response) => {
    const action = actions[request.url.replace("/test/", "")];
    if (!action) return provider.callback()(request, response);
    let body = "";
    for await (const part of request) body += part;
    response.end(JSON.stringify((await action(JSON.parse(body))) ?? null));
  })
  .listen(settings.port, settings.host, () => say("ready", { issuer }));
