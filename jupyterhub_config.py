"""The whole deployment, in JupyterHub's own configuration language; it runs as it is, on defaults, as the demo.

What a site changes is on this page. JupyterHub's settings are explained by `jupyterhub --help-all`, Hutch's own where they are
defined: `class Hutch` in hub/configuration.py and `c.OpenStackSpawner` in spawner/settings.py.
"""

from pathlib import Path

import hub

c = get_config()  # noqa: F821
folder = Path(__file__).parent

# --- the facility
c.Hutch.facility_name = "Example Facility"
c.Hutch.contact = "the user office (users@facility.example)"
# c.Hutch.database_url = "postgresql://hutch@db.facility.example/hutch"

# --- where people find it. Each user gets a domain of their own below this one; *.localhost needs no DNS
c.JupyterHub.bind_url = "http://localhost:8000"
# c.JupyterHub.subdomain_host = "https://hutch.facility.example"

# --- who signs on. The demo lets anybody in as any example user, and so runs on loopback only
c.JupyterHub.authenticator_class = "hub.authenticator.DemoAuthenticator"

# --- the cloud, by its name in clouds.yaml. The demo's is a toy on this machine
c.OpenStackSpawner.cloud_name = "devcloud"
c.OpenStackSpawner.clouds_yaml = str(folder / ".hutch" / "devcloud" / "clouds.yaml")
c.OpenStackSpawner.network = "hutch"
# c.OpenStackSpawner.security_groups = ["hutch-instances"]

hub.install(c, Path(__file__))
