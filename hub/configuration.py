"""Hutch's own settings: a section of jupyterhub_config.py, read by every process through `load`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from datetime import datetime, timedelta
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from urllib.parse import urlsplit

from traitlets import Bool, Dict, Enum, Float, Int, TraitError, Unicode, default, validate
from traitlets.config import Config, Configurable
from traitlets.config.loader import PyFileConfigLoader

from .access import UNLIMITED, Quota, Terms
from .errors import HutchError, near, nearest
from .firewall import Firewall

# so that a process started by another one reads the same file
CONFIG_VARIABLE = "HUTCH_CONFIG"
# of a section, as others may be of programs that Hutch does not know
SURELY_MISSPELT = 0.9


class ConfigurationError(HutchError):
    """jupyterhub_config.py is missing, does not run, or sets what Hutch does not know."""


class Hutch(Configurable):
    """The settings of one deployment, as in `c.Hutch.facility_name = "Nordhavn"`.

    What is set in code here is the default. A relative path counts from the folder of jupyterhub_config.py.
    """

    facility_name = Unicode("Example Facility", help="Name the facility, as users read it in titles and mails.")
    contact = Unicode(
        help="""
        Say whom users should ask when something fails: an address or a short phrase. Default: empty, and messages then name nobody.
        Example::

            c.Hutch.contact = "scientific-computing@facility.example"
        """
    )
    state_dir = Unicode(
        ".hutch", help="Keep what Hutch writes (database, keys, logs) in this folder, made when it is first needed."
    )
    database_url = Unicode(
        help="""
        Store Hutch's records in this database, an SQLAlchemy URL. Default: SQLite, in `hutch.sqlite` in the state_dir.

        PostgreSQL takes its password from a file (`~/.pgpass`) rather than from this URL, and needs the package `psycopg`::

            c.Hutch.database_url = "postgresql://hutch@db.facility.example/hutch"
        """
    )
    sources_dir = Unicode("sources", help="Read the sources of facility records from this folder, one file `<name>.toml` for each.")
    etl_url = Unicode(
        "http://127.0.0.1:9581",
        help="""
        Let `hutch etl serve` listen here, for batches that user offices push, and for /health and /metrics.

        By default it does so only for this machine. An address for others must be https, with an `etl_certificate`. Example::

            c.Hutch.etl_url = "https://0.0.0.0:9581"
        """,
    )
    etl_certificate = Unicode(
        help="Show this certificate, with its chain and key in one PEM file, to those who push. Default: empty, none."
    )
    etl_client_ca = Unicode(
        help="""
        Accept client certificates that the authorities in this PEM file signed; each source lists its `subjects`.
        Default: empty, and only tokens are accepted.
        """
    )
    push_limit_mb = Int(64, min=1, help="Take at most this many megabytes in one push, unpacked. Some 300,000 rows have 64.")
    portal_port = Int(
        9580, min=1, max=65535, help="Let the portal listen on this TCP port of 127.0.0.1, where JupyterHub's proxy finds it."
    )
    desktop_relays = Int(
        1,
        min=0,
        max=64,
        help="""
        Run this many processes that carry desktops between browsers and instances; each has the instances of its own, and uses one
        core at most. 0 means that there are no desktops.
        """,
    )
    desktop_port = Int(
        9590,
        min=1,
        max=65472,
        help="Let the first of them listen on this TCP port of 127.0.0.1, where JupyterHub's proxy finds it; the others follow it.",
    )
    quotas = Dict(
        value_trait=Dict(value_trait=Int(min=-1), key_trait=Enum(["instances", "cores"])),
        help="""
        Allow so many instances at a time, and so many cores together, to those with a role, or in a group; "" is everybody:
        {name: {"instances": count, "cores": count}}. Default: two instances for everybody, however many cores they have.

        The most generous of what a person holds counts; -1 means without limit, 0 none at all. What the source allots a person
        comes before it, and what an admin set for them before all. Example::

            c.Hutch.quotas = {"": {"instances": 2, "cores": 16}, "staff": {"instances": 5, "cores": 64}, "admin": {"instances": -1}}
        """,
    )
    support_window_days = Float(
        7, min=0, help="Let instrument control support instances of experiments that run within so many days of now."
    )
    include_open_data = Bool(
        help="""
        Let everybody launch for experiments whose embargo is over (the proposal's `public_at`), as if they were members.
        Default: False, and only members may.
        """
    )
    lifetime_days = Float(14, min=0, help="Let an instance live this many days from its creation. 0 = without end.")
    invitations = Bool(
        help="""
        Let owners make links by which others become members of an instance, if its experiments are theirs too.
        Default: False, and owners add people by name.
        """
    )
    delete_grace_days = Float(
        7,
        min=0,
        help="""
        Keep a deleted instance this many days before its server and disk go, so that its owner can restore it.
        0 means that the steward removes it at its next pass.
        """,
    )
    steward_interval_seconds = Float(
        10,
        min=0.1,
        help="""
        Let this many seconds pass between two passes of the steward. Longer means fewer calls to the cloud, and later deletions and
        warnings.
        """,
    )
    reconcile = Enum(
        ["report", "quarantine", "delete"],
        "report",
        help="""
        Do at most this about what is in the cloud and should not be: show it, stop and tag it, or delete it after that.
        Only what carries this deployment's ids is ever touched; docs/reconciling.md names each difference.
        """,
    )
    reconcile_interval_seconds = Float(60, min=0.1, help="Compare the cloud, the records and the hub this often, in seconds.")
    quarantine_after_hours = Float(1, min=0, help="Quarantine what has been found for this many hours without a break.")
    quarantine_days = Float(7, min=0, help="Delete what was quarantined this many days ago.")
    steward_port = Int(9582, min=0, max=65535, help="Show the steward's metrics on this TCP port of 127.0.0.1. 0 = nowhere.")
    most_revoked_share = Float(
        0.05,
        min=0,
        max=1,
        help="""
        Take at most this share of the running instances from people at a time, because they are no longer on the experiment.

        It is always up to 3. Where it would be more, the steward takes none, and asks the admins. The same share of the servers is
        the most that it quarantines or deletes at a time.
        """,
    )
    firewall = Dict(
        help="""
        Make these security groups in the cloud, keep their rules, and choose among them for each instance.

        Default: none, and only the spawner's `security_groups` guard an instance. `hub_addresses` is where the hub and the proxy
        call from: the base group, on every instance, lets nobody else in, and has `rules` besides (default: all that goes out).
        Of `groups`, those are chosen for which one way of `for` holds whole (without `for`: for everybody; []: only the hook
        chooses); one without `rules` is the cloud's own, and not changed. `hook`, a function or the URL of an HTTP service that
        is posted JSON, is told what is known of an instance and names more of them within `hook_seconds` (default: 3); when it
        fails, a launch has the base group alone, and the instance's history says so. Example::

            nano = {"rules": [{"to": "10.3.0.0/24", "ports": "5064-5065"}], "for": [{"instruments": ["ID16"], "within_days": 2}]}
            licences = {"for": [{"flavors": ["gpu.large"]}, {"roles": ["staff"], "groups": ["modelling"]}]}
            c.Hutch.firewall = {"hub_addresses": ["10.77.0.1"], "groups": {"nano": nano, "licences": licences}}
        """
    )
    smtp_url = Unicode(
        help="""
        Send mail through this server, `smtp://host:port`, or `smtps://host:port` where TLS comes before all else.

        Default: empty, and no mail is sent. With `smtp://`, TLS is used where the server offers it (STARTTLS). Example::

            c.Hutch.smtp_url = "smtp://localhost:25"
        """
    )
    smtp_login_file = Unicode(
        help="""
        Sign on at the mail server with what is in this file: the name in its first line, the password in its second.
        Default: empty, without. Hutch then insists on TLS.
        """
    )
    mail_from = Unicode("hutch@localhost", help="Send mail from this address.")
    admin_mail = Unicode(
        help="Send mail for those who run Hutch, such as of refused runs, to this address. Default: empty, and none is sent."
    )

    @validate("firewall")
    def _readable(self, proposal: dict) -> dict:
        try:
            Firewall(proposal["value"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TraitError(f"firewall: {error!r}") from error
        return proposal["value"]

    @validate("smtp_url")
    def _known_scheme(self, proposal: dict) -> str:
        if proposal["value"] and urlsplit(proposal["value"]).scheme not in ("smtp", "smtps"):
            raise TraitError(f"smtp_url must begin with smtp:// or smtps://, not be {proposal['value']!r}")
        return proposal["value"]

    @default("database_url")
    def _database_url(self) -> str:
        return f"sqlite:///{Path(self.state_dir).absolute() / 'hutch.sqlite'}"

    @property
    def lifetime(self) -> timedelta | None:
        """None: without end."""
        return timedelta(days=self.lifetime_days) if self.lifetime_days else None

    @property
    def delete_grace(self) -> timedelta:
        return timedelta(days=self.delete_grace_days)

    @property
    def whom_to_ask(self) -> str:
        """The sentence that ends a refusal; empty where there is no contact."""
        return f" Please ask {self.contact}." if self.contact else ""

    def terms(self, at: datetime) -> Terms:
        """What the rules of access need to know of this site."""
        everybody = {"instances": 2, "cores": UNLIMITED} | self.quotas.get("", {})
        quotas = {name: Quota(**counts) for name, counts in {**self.quotas, "": everybody}.items()}
        window = timedelta(days=self.support_window_days)
        return Terms(at, quotas, self.lifetime, support_window=window, open_data=self.include_open_data)

    @validate("lifetime_days", "support_window_days", "delete_grace_days", "steward_interval_seconds", "reconcile_interval_seconds")
    def _finite(self, proposal: dict) -> float:
        if not isfinite(proposal["value"]):
            raise TraitError(f"{proposal['trait'].name} must be a finite number, not {proposal['value']}")
        return proposal["value"]


for _setting in Hutch.class_own_traits().values():
    _setting.tag(config=True)


def config_path(path: str | Path | None = None) -> Path:
    """The file to read: the one given, else the one $HUTCH_CONFIG names, else jupyterhub_config.py in this folder."""
    return Path(path or os.environ.get(CONFIG_VARIABLE) or "jupyterhub_config.py").expanduser().absolute()


def load(path: str | Path | None = None) -> Hutch:
    """Read Hutch's settings; a relative state_dir becomes absolute, counted from the file's folder."""
    file = config_path(path)
    section = _section(read(file), file)
    try:
        hutch = Hutch(config=Config(Hutch=section))
    except TraitError as error:
        raise ConfigurationError(f"{file}: {_one_line(error)}") from error
    for name in ("state_dir", "sources_dir"):
        setattr(hutch, name, str(file.parent / Path(getattr(hutch, name)).expanduser()))
    return hutch


def read(path: str | Path | None = None) -> Config:
    """Read the whole of jupyterhub_config.py, as JupyterHub itself sees it."""
    file = config_path(path)
    if not file.is_file():
        raise ConfigurationError(f"{file}: no such file; name the deployment's jupyterhub_config.py, or set ${CONFIG_VARIABLE}")
    try:
        return PyFileConfigLoader(file.name, path=str(file.parent)).load_config()
    except SyntaxError as error:
        where = f"{error.filename or file}:{error.lineno}" if error.lineno else f"{error.filename or file}"
        raise ConfigurationError(f"{where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f"{file}:{lines[-1]}" if lines else str(file)
        raise ConfigurationError(f"{where}: {type(error).__name__}: {_one_line(error)}") from error


def _section(config: Config, file: Path) -> Config:
    section = config.get("Hutch", Config())
    known = sorted(Hutch.class_trait_names(config=True))
    for name in section:
        if name not in known:
            raise ConfigurationError(f"{file}: Hutch has no setting {name!r}{near(name, known)}")
    return section


def unknown_settings(config: Config, *classes: type[Configurable]) -> Iterator[str]:
    """What none of these classes takes. traitlets tells only the hub's log of it, and not of sections that there are not."""
    known: dict[str, set[str]] = {}
    for one in classes:
        for base in [base for base in one.__mro__ if issubclass(base, Configurable)]:
            # a section may set what only a class below has
            known.setdefault(base.__name__, set()).update(one.class_trait_names(config=True))
    for section, settings in config.items():
        for like in [] if section in known else get_close_matches(section, known, 1, SURELY_MISSPELT):
            yield f"there is no c.{section}; did you mean c.{like}?"
        for name in sorted(settings.keys() - known.get(section, settings.keys())):
            yield f"c.{section} has no setting {name!r}{nearest(name, known[section])}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
