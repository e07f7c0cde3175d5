"""The facility side of the hub. `install(c)` is the one call that a site's jupyterhub_config.py makes."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from shutil import which
from typing import Any

from traitlets.config import Config

HERE = Path(__file__).parent


def install(c: Config, file: Path) -> None:
    """Wires Hutch into JupyterHub's configuration `c`, which `file` is; relative paths count from its folder.

    Call it last: what the site has set stays as it is, and only what is missing is filled in.
    """
    # here, so that reading this module costs nothing to whoever only wants a part of it
    from . import services
    from .authenticator import ADMIN_ROLE
    from .configuration import Hutch

    folder = file.absolute().parent
    hutch = Hutch(config=c)
    state = folder / hutch.state_dir
    c.Hutch.state_dir = str(state)
    hutch.state_dir = str(state)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)

    hub_url = c.JupyterHub.setdefault("bind_url", "http://localhost:8000")
    _fill(
        c.JupyterHub,
        # no guarantee holds between users without a domain for each
        subdomain_host=hub_url,
        hub_ip="127.0.0.1",
        authenticator_class="hub.authenticator.DemoAuthenticator",
        spawner_class="hub.launching.InstanceSpawner",
        db_url=f"sqlite:///{state / 'jupyterhub.sqlite'}",
        cookie_secret_file=str(state / "cookie-secret"),
        allow_named_servers=True,
        # instances go on when the hub ends
        cleanup_servers=False,
        # the hub opens at once; servers that do not answer are looked into while it works
        init_spawners_timeout=1,
        default_url="/hub/home",
        template_paths=[str(HERE / "templates")],
    )
    # what leaves this machine is encrypted, and shows who it is in both directions; a site's own proxy has to be told how first
    address = c.JupyterHub.get("hub_connect_ip") or c.JupyterHub.hub_ip
    beyond = address not in ("localhost", "127.0.0.1", "::1") and c.ConfigurableHTTPProxy.get("should_start", True)
    if c.JupyterHub.setdefault("internal_ssl", beyond):
        _fill(c.JupyterHub, internal_certs_location=str(state / "internal-tls"), trusted_alt_names=[f"IP:{address}"])
    portal_url = services.portal_address(c.JupyterHub.subdomain_host, c.JupyterHub.get("base_url", "/"))
    c.JupyterHub.template_vars = {
        "portal_url": portal_url,
        "contact": hutch.contact,
        "facility_name": hutch.facility_name,
        **c.JupyterHub.get("template_vars", {}),
    }
    # long enough for a refusal to be the answer, short enough not to be waited for
    c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0.3, **c.JupyterHub.get("tornado_settings", {})}
    c.JupyterHub.extra_user_scopes = sorted({*c.JupyterHub.get("extra_user_scopes", ()), *services.USER_SCOPES})
    ours = [services.portal(hutch, file), services.service(services.STEWARD, file), *services.relays(hutch, file)]
    for one in ours:
        one["environment"] |= services.addresses(hutch, c.JupyterHub.subdomain_host, c.JupyterHub.get("base_url", "/"))
    c.JupyterHub.services = [*c.JupyterHub.get("services", ()), *ours]
    c.JupyterHub.load_roles = [
        *(*c.JupyterHub.get("load_roles", ()), services.STEWARD_ROLE, ADMIN_ROLE),
        *([services.relay_role(hutch)] if hutch.desktop_relays else []),
    ]

    _fill(c.ConfigurableHTTPProxy, command=_proxy_command(), pid_file=str(state / "proxy.pid"))
    _fill(c.OpenStackSpawner, state_dir=str(state))
    if c.JupyterHub.db_url.startswith("sqlite:"):
        # JupyterHub commits some twenty times in a launch, on its event loop: with WAL it does not wait for the disk each time
        _fill(c.JupyterHub, db_kwargs={"connect_args": {"check_same_thread": False, "factory": WalConnection}})
    else:
        from .database.engine import TO_NOTICE_SILENCE

        _fill(c.JupyterHub, db_kwargs={"connect_args": TO_NOTICE_SILENCE})


class WalConnection(sqlite3.Connection):
    """SQLite as the hub's own database; a power cut can lose the last moments, a crash nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("PRAGMA synchronous = NORMAL")


def _proxy_command() -> list[str]:
    """JupyterHub's proxy as it was installed beside this package, and the Node that was installed for it, if any."""
    proxy = HERE.parent / "node_modules/configurable-http-proxy/bin/configurable-http-proxy"
    node = which("node", path=str(Path(sys.executable).parent)) or "node"
    return [node, str(proxy)] if proxy.exists() else ["configurable-http-proxy"]


def _fill(section: Any, **defaults: Any) -> None:
    for name, value in defaults.items():
        section.setdefault(name, value)
