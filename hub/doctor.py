"""`hutch doctor`: what a deployment needs, looked at one by one. A check is a function; it changes nothing and tells no secret.

A check returns what it saw, or raises: Missing where it does not apply, any other error where something is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import aiosmtplib
from rich.console import Console
from rich.markup import escape
from sqlalchemy import select
from traitlets.config import Config

from spawner.agent_client import wait_listening
from spawner.cloud import Cloud, CloudError
from spawner.openstack import OpenStackSpawner
from spawner.places import cloud_in, clouds
from spawner.servers import address_of, instance_of

from . import configuration, mail
from .configuration import Hutch
from .database import seal
from .database.tables import Plan
from .errors import HutchError
from .facility import Facility
from .oidc import OpenIDProvider
from .steward.tasks import meant_to_run

SECONDS = 20.0
AGENT_SECONDS = 5.0


class Missing(Exception):
    """There is nothing to check here; str() says why."""


@dataclass
class Site:
    """What the checks look at, each part made when it is first needed."""

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
    return f"{configuration.config_path()} is read; state_dir is {site.hutch.state_dir}"


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
    for name, settings in providers.items():
        await OpenIDProvider(name, settings, Path(site.hutch.state_dir)).discover()
    return f"{', '.join(providers)}: discovered, with keys"


async def check_login(site: Site) -> str:
    asked = set(site.clouds.values())
    await _all([cloud.servers(site.facility.deployment_id) for cloud in asked])
    return f"{_list(cloud.label for cloud in asked)}: the credentials are accepted, servers are listed"


async def check_quotas(site: Site) -> str:
    limits = {cloud.label: await cloud.limits() for cloud in set(site.clouds.values())}
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
    images, flavors = {(cloud, plan.image) for cloud, plan in where}, {(cloud, plan.flavor) for cloud, plan in where}
    await _all([*(cloud.image_id(name) for cloud, name in images), *(cloud.flavor_id(name) for cloud, name in flavors)])
    return f"{len(plans)} plans: {len(images)} images and {len(flavors)} flavors are there"


async def check_network(site: Site) -> str:
    named = {(cloud, site.spawner.at(place, "network")) for place, cloud in site.clouds.items()}
    await _all([cloud.network_id(name) for cloud, name in named])
    return f"{_list(name for _, name in named)}: there"


async def check_groups(site: Site) -> str:
    named = {(cloud, name) for place, cloud in site.clouds.items() for name in site.spawner.at(place, "security_groups")}
    if not named:
        raise Missing("none is named (c.OpenStackSpawner.security_groups)")
    await _all([cloud.security_group_id(name) for cloud, name in named])
    return f"{_list(name for _, name in named)}: there"


async def check_agents(site: Site) -> str:
    """Of one instance that runs: whether its port lets this machine in."""
    running = {one.instance_id for one in await site.facility.ask(meant_to_run)}
    listed = await asyncio.gather(*(cloud.servers(site.facility.deployment_id) for cloud in set(site.clouds.values())))
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
CHECKS: list[tuple[str, Check, str, str]] = [
    ("configuration", check_configuration, "", "mend the line that is named"),
    ("database", check_database, "configuration", "do what it says; `hutch db upgrade` makes an empty one"),
    ("sign-on", check_sign_on, "configuration", "see docs/sign-on.md; the issuer is written as the provider's own metadata does"),
    (
        "cloud login",
        check_login,
        "database",
        "check clouds_yaml and cloud_name of c.OpenStackSpawner, and the credential in the file",
    ),
    ("quotas", check_quotas, "cloud login", "ask those who run the cloud"),
    ("images and flavors", check_plans, "cloud login", "publish the image, or name what the cloud has in the plans"),
    ("network", check_network, "cloud login", "set c.OpenStackSpawner.network to a network of the project"),
    ("security groups", check_groups, "cloud login", "make the groups, or name others in c.OpenStackSpawner.security_groups"),
    ("agents", check_agents, "cloud login", "let this machine's address in at the agent's port; see its console for what it did"),
    ("mail", check_mail, "configuration", "check smtp_url and smtp_login_file of c.Hutch"),
]


async def examine(site: Site) -> AsyncIterator[tuple[str, str, str]]:
    """Title, PASS, FAIL or SKIP, and the words, as they come."""
    passed = {""}
    for title, check, needs, advice in CHECKS:
        if needs not in passed:
            yield title, "SKIP", f"needs {needs}"
            continue
        try:
            async with asyncio.timeout(SECONDS):
                words = await check(site)
        except Missing as error:
            yield title, "SKIP", str(error)
        except TimeoutError:
            yield title, "FAIL", f"no answer within {SECONDS:g} s; {advice}"
        except Exception as error:
            detail = f" ({error.detail})" if isinstance(error, CloudError) and error.detail else ""
            yield title, "FAIL", f"{str(error).rstrip('.') or type(error).__name__}{detail}; {advice}"
        else:
            passed.add(title)
            yield title, "PASS", words


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


async def _all(looks: Sequence[Awaitable[Any]]) -> None:
    """Every one that fails is named."""
    answers = await asyncio.gather(*looks, return_exceptions=True)
    if wrong := [f"{one} {getattr(one, 'detail', '')}".strip() for one in answers if isinstance(one, BaseException)]:
        raise HutchError("; ".join(wrong))


def report(console: Console) -> bool:
    """Prints each outcome as it comes; whether nothing failed."""
    colours, outcomes = {"PASS": "green", "FAIL": "red", "SKIP": "yellow"}, set()

    async def run() -> None:
        async for title, outcome, words in examine(Site()):
            outcomes.add(outcome)
            console.print(f"[{colours[outcome]}]{outcome}[/] [bold]{title}[/]: {escape(words)}", soft_wrap=True)

    asyncio.run(run())
    return "FAIL" not in outcomes
