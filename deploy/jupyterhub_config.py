"""Hutch in production: copy this to /etc/hutch/jupyterhub_config.py and change what is a facility's own. See docs/deploying.md."""

from pathlib import Path

import hub

c = get_config()  # noqa: F821

# --- the facility
c.Hutch.facility_name = "Example Facility"
c.Hutch.contact = "the user office (users@facility.example)"
c.Hutch.admin_mail = "hutch-admins@facility.example"
c.Hutch.smtp_url = "smtp://localhost:25"

# --- what is kept: over the unix socket, where PostgreSQL knows the account by itself and there is no password
c.Hutch.state_dir = "/var/lib/hutch"
c.Hutch.database_url = "postgresql:///hutch"
c.JupyterHub.db_url = "postgresql:///hutch_jupyterhub"

# --- the address; nginx is in front
c.JupyterHub.subdomain_host = "https://hutch.facility.example"
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.tornado_settings = {"cookie_options": {"secure": True}}

# --- a proxy of its own, which goes on while the hub is started again
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.auth_token = Path("/etc/hutch/proxy-token").read_text().strip()

# --- where instances find the hub: this host's address on their network. Let in nobody else there
c.JupyterHub.hub_ip = "0.0.0.0"  # noqa: S104
c.JupyterHub.hub_connect_ip = "10.20.0.5"

# --- who signs on
c.JupyterHub.authenticator_class = "hub.sign_on.FacilityAuthenticator"
c.FacilityAuthenticator.providers = {
    "facility": {
        "login_service": "Example Facility",
        "issuer": "https://sso.facility.example/realms/users",
        "client_id": "hutch",
        "client_secret_file": "/etc/hutch/oidc-secret",
        "claims": {"login": "preferred_username"},
    },
}

# --- the cloud, by its name in clouds.yaml
c.OpenStackSpawner.cloud_name = "facility"
c.OpenStackSpawner.clouds_yaml = "/etc/hutch/clouds.yaml"
c.OpenStackSpawner.network = "hutch-instances"
c.Hutch.firewall = {"hub_addresses": ["10.20.0.5"]}

hub.install(c, Path(__file__))
