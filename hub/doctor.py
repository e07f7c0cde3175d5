"""`hutch doctor`: what a deployment needs, looked at one by one. A check is a function; it changes nothing and tells no secret.

A check returns what it saw, or raises: Missing where it does not apply, any other error where something is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import aiosmtplib
from jupyterhub.app import JupyterHub
from rich.console import Console
from rich.markup import escape
from sqlalchemy import select
from traitlets.config import Config

from spawner.agent_client import wait_listening
from spawner.cloud import Cloud
from spawner.cloud_errors import CloudError
from spawner.openstack import OpenStackSpawner
from spawner.places import cloud_in, clouds
from spawner.servers import address_of, instance_of

from . import configuration, mail
from .configuration import Hutch
from .database import seal
from .database.tables import Plan
from .errors import HutchError
from .facility import Facility
from .firewall import Firewall
from .launching import InstanceSpawner
from .oidc import OpenIDProvider
from .sign_on import FacilityAuthenticator
from .steward.tasks import meant_to_run

SECONDS = 20.0
LOOK_SECONDS = 15.0
AGENT_SECONDS = 5.0


class Missing(Exception):
    """There is nothing to check here; str() says why."""


class Partly(HutchError):
    """Not all of it is as it should be; the checks that need it look at the rest."""


@dataclass
class Site:
    """What the checks look at, each part made when it is first needed. reached: the clouds that accepted the login."""

    reached: set[Cloud] = field(default_factory=set)

    @cached_property
    def config(self) -> Config:
        return configuration.read()

    @cached_property
    def hutch(self) -> Hutch:
        return configuration.load()

    @cached_property
    def facility(self) -> Facility:
        return Facility(self.hutch)

    @cached_property
    def spawner(self) -> OpenStackSpawner:
        return OpenStackSpawner(config=self.config)

    @cached_property
    def clouds(self) -> dict[str, Cloud]:
        """By place; several may be the same."""
        return clouds(self.config)


async def check_configuration(site: Site) -> str:
    assert site.spawner  # its settings are read with it
    folder = Path(site.hutch.state_dir)
    try:
        with TemporaryFile(dir=next(one for one in (folder, *folder.parents) if one.exists())) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise Partly(f"nothing can be written in the state_dir {folder}: {error.strerror}") from error
    # only so much of JupyterHub that it finds the classes
    app = JupyterHub(config=Config(JupyterHub={name: of for name, of in site.config.JupyterHub.items() if name.endswith("_class")}))
    used = (app.spawner_class, app.authenticator_class, app.proxy_class)
    if wrong := [*configuration.unknown_settings(site.config, Hutch, JupyterHub, InstanceSpawner, FacilityAuthenticator, *used)]:
        raise Partly("; ".join(wrong))
    return f"{configuration.config_path()} is read; state_dir is {folder}"


async def check_database(site: Site) -> str:
    facility = await asyncio.to_thread(lambda: site.facility)
    name, of = facility.engine.url.render_as_string(hide_password=True), await asyncio.to_thread(lambda: facility.deployment_id)
    if not await facility.ask(lambda session: seal.holds(session, Path(site.hutch.state_dir), of)):
        raise HutchError(seal.ADVICE)
    return f"{name} is at the revision that this Hutch needs; deployment {of}"


async def check_sign_on(site: Site) -> str:
    providers = site.config.FacilityAuthenticator.get("providers", {})
    if not providers:
        raise Missing("no OpenID provider is set (c.FacilityAuthenticator.providers): nobody but a demo can do without")

    async def discover(name: str, settings: Any) -> None:
        await OpenIDProvider(name, settings, Path(site.hutch.state_dir)).discover()

    await _all([(name, discover(name, settings)) for name, settings in providers.items()])
    return f"{', '.join(providers)}: discovered, with keys"


async def check_login(site: Site) -> str:
    """Whatever the database is like: no deployment has this id."""

    async def look(cloud: Cloud) -> None:
        await cloud.servers("doctor")
        site.reached.add(cloud)

    asked = set(site.clouds.values())
    await _all([(cloud.label, look(cloud)) for cloud in asked])
    return f"{_list(cloud.label for cloud in asked)}: the credentials are accepted, servers are listed"


async def check_quotas(site: Site) -> str:
    limits = {cloud.label: await cloud.limits() for cloud in site.reached}
    full = [f"{name} in {label}" for label, of in limits.items() for name, (limit, used) in of.items() if 0 <= limit <= used]
    if full:
        raise HutchError(f"nothing is left of {_list(full)}: no launch can succeed; delete servers, or have the quota raised")
    told = (f"{name} {used} of {limit if limit >= 0 else 'any'}" for of in limits.values() for name, (limit, used) in of.items())
    return ", ".join(told)


async def check_plans(site: Site) -> str:
    plans = await site.facility.ask(lambda session: session.scalars(select(Plan).where(Plan.ended_at.is_(None))).all())
    if not plans:
        raise Missing("no plan is loaded: `hutch etl run` loads them")
    where = [(cloud_in(site.clouds, place), plan) for plan in plans for place in plan.places or ("",)]
    where = [(cloud, plan) for cloud, plan in where if cloud in site.reached]
    images, flavors = {(cloud, plan.image) for cloud, plan in where}, {(cloud, plan.flavor) for cloud, plan in where}
    looks = [
        *((cloud.label, cloud.image_id(name)) for cloud, name in images),
        *((cloud.label, cloud.flavor_id(name)) for cloud, name in flavors),
    ]
    await _all(looks)
    return f"{len(plans)} plans: {len(images)} images and {len(flavors)} flavors are there"


async def check_network(site: Site) -> str:
    named = {(cloud, site.spawner.at(place, "network")) for place, cloud in site.clouds.items() if cloud in site.reached}
    await _all([(cloud.label, cloud.network_id(name)) for cloud, name in named])
    return f"{_list(name for _, name in named)}: there"


async def check_groups(site: Site) -> str:
    firewall, of = Firewall(site.hutch.firewall), site.facility.deployment_id
    chosen = [firewall.cloud_name(name, of) for name in firewall.ways]
    places = [(place, cloud) for place, cloud in site.clouds.items() if cloud in site.reached]
    named = {(cloud, name) for place, cloud in places for name in (*site.spawner.at(place, "security_groups"), *chosen)}
    if not named:
        raise Missing("none is named (c.Hutch.firewall, c.OpenStackSpawner.security_groups)")
    await _all([(cloud.label, cloud.security_group_id(name)) for cloud, name in named])
    return f"{_list(name for _, name in named)}: there"


async def check_agents(site: Site) -> str:
    """Of one instance that runs: whether its port lets this machine in."""
    running = {one.instance_id for one in await site.facility.ask(meant_to_run)}
    listed = await asyncio.gather(*(cloud.servers(site.facility.deployment_id) for cloud in site.reached))
    up = next((one for servers in listed for one in servers if instance_of(one) in running and one["status"] == "ACTIVE"), None)
    if up is None:
        raise Missing("no instance runs: launch one, and ask again")
    address, port = address_of(up), site.spawner.agent_port
    await wait_listening(address, port, asyncio.get_running_loop().time() + AGENT_SECONDS)
    return f"that of instance {instance_of(up)} accepts connections at {address}, port {port}"


async def check_mail(site: Site) -> str:
    if not site.hutch.smtp_url:
        raise Missing("no mail server is set (c.Hutch.smtp_url): people read notices on their pages only")
    client = aiosmtplib.SMTP(**mail.connection(site.hutch))
    await client.connect()
    try:
        await client.ehlo()
    finally:
        with suppress(aiosmtplib.SMTPException, OSError):
            await client.quit()
    return f"{client.hostname} answers{' and accepts the login' if site.hutch.smtp_login_file else ''}; nothing was sent"


Check = Callable[[Site], Awaitable[str]]
# title, check, the checks without which it says nothing, and what to do where it fails
CHECKS: list[tuple[str, Check, tuple[str, ...], str]] = [
    ("configuration", check_configuration, (), "mend what is named"),
    ("database", check_database, ("configuration",), "do what it says; `hutch db upgrade` makes an empty one"),
    (
        "sign-on",
        check_sign_on,
        ("configuration",),
        "see docs/sign-on.md; the issuer is written as the provider's own metadata does",
    ),
    (
        "cloud login",
        check_login,
        ("configuration",),
        "check clouds_yaml and cloud_name of c.OpenStackSpawner, and the credential in the file",
    ),
    ("quotas", check_quotas, ("cloud login",), "ask those who run the cloud"),
    ("images and flavors", check_plans, ("database", "cloud login"), "publish the image, or name what the cloud has in the plans"),
    ("network", check_network, ("cloud login",), "set c.OpenStackSpawner.network to a network of the project"),
    (
        "security groups",
        check_groups,
        ("database", "cloud login"),
        "hutch-… are made by the steward, whose log says why they are not; make the others, or name none",
    ),
    (
        "agents",
        check_agents,
        ("database", "cloud login"),
        "let this machine's address in at the agent's port; see its console for what it did",
    ),
    ("mail", check_mail, ("configuration",), "check smtp_url and smtp_login_file of c.Hutch"),
]


async def examine(site: Site) -> AsyncIterator[tuple[str, str, str]]:
    """Title, PASS, FAIL or SKIP, and the words, as they come."""
    passed = set[str]()
    for title, check, needs, advice in CHECKS:
        if missing := [one for one in needs if one not in passed]:
            yield title, "SKIP", f"needs {' and '.join(missing)}"
            continue
        try:
            async with asyncio.timeout(SECONDS):
                words = await check(site)
        except Missing as error:
            yield title, "SKIP", str(error)
        except TimeoutError:
            yield title, "FAIL", f"no answer within {SECONDS:g} s; {advice}"
        except Exception as error:
            passed |= {title} if isinstance(error, Partly) else set()
            detail = f" ({error.detail})" if isinstance(error, CloudError) and error.detail else ""
            yield title, "FAIL", f"{str(error).rstrip('.') or type(error).__name__}{detail}; {advice}"
        else:
            passed.add(title)
            yield title, "PASS", words


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


async def _all(looks: Sequence[tuple[str, Awaitable[Any]]]) -> None:
    """Every one that fails is named, and none keeps the others from being heard."""
    answers = await asyncio.gather(*(asyncio.wait_for(look, LOOK_SECONDS) for _, look in looks), return_exceptions=True)
    wrong = [(label, one) for (label, _), one in zip(looks, answers, strict=True) if isinstance(one, BaseException)]
    silent = f"no answer within {LOOK_SECONDS:g} s"
    words = [f"{label}: {str(one) or silent} {getattr(one, 'detail', '')}".strip() for label, one in wrong]
    if wrong:
        raise (Partly if len(wrong) < len(looks) else HutchError)("; ".join(words))


def report(console: Console) -> bool:
    """Prints each outcome as it comes; whether nothing failed."""
    colours, outcomes = {"PASS": "green", "FAIL": "red", "SKIP": "yellow"}, set()

    async def run() -> None:
        async for title, outcome, words in examine(Site()):
            outcomes.add(outcome)
            console.print(f"[{colours[outcome]}]{outcome}[/] [bold]{title}[/]: {escape(words)}", soft_wrap=True)

    asyncio.run(run())
    return "FAIL" not in outcomes
