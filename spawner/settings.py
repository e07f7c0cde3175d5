"""What a site can set about its instances in OpenStack, as JupyterHub's own settings: the traits of OpenStackSpawner."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from traitlets import Dict, Enum, Float, Int, List, TraitError, Unicode, default, validate
from traitlets.config import LoggingConfigurable


class Place(BaseModel):
    """What may differ in a place from the spawner's own settings. images, flavors: {the name that a plan gives: the name there}."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cloud_name: str = ""
    clouds_yaml: str = ""
    region_name: str = ""
    availability_zone: str = ""
    network: str = ""
    security_groups: list[str] = []
    images: dict[str, str] = {}
    flavors: dict[str, str] = {}


PLACES = TypeAdapter(dict[Annotated[str, Field(min_length=1)], Place])


class OpenStackSettings(LoggingConfigurable):
    """In jupyterhub_config.py they are set as `c.OpenStackSpawner.cloud_name = "facility"`."""

    cloud_name = Unicode("openstack", config=True, help="Use the cloud of this name in clouds.yaml. Default: `openstack`.")
    clouds_yaml = Unicode(
        "",
        config=True,
        help="""
        Read the cloud's address and credentials from this file.

        Default: empty, which means the places where openstacksdk looks by itself.
        ref: https://docs.openstack.org/openstacksdk/latest/user/config/configuration.html
        """,
    )
    region_name = Unicode(config=True, help="Use this region of the cloud. Default: empty, the one that clouds.yaml names.")
    places = Dict(
        config=True,
        help="""
        Offer these further places to launch in: other clouds, regions, availability zones or networks.

        By name, what differs there from the spawner's own settings: `cloud_name`, `clouds_yaml`, `region_name`, `network`,
        `availability_zone`, `security_groups`; and `images` and `flavors`, {the name that a plan gives: the name there}. A place
        keeps its name and its cloud for as long as there are instances in it. Default: none, everything is in the place of the
        spawner's own settings. For example::

            c.OpenStackSpawner.places = {"main": {}, "north": {"region_name": "North", "network": "hutch-north"}}
        """,
    )
    allowed_places = List(
        Unicode(),
        config=True,
        help="Launch in the first of these places that has room. Default: none named, the place of the spawner's own settings.",
    )
    image = Unicode(config=True, help="Boot this Glance image, by name or id. No default.")
    flavor = Unicode(config=True, help="Give the server this Nova flavor, by name or id. No default.")
    network = Unicode("hutch", config=True, help="Attach the server to this Neutron network, by name or id. Default: `hutch`.")
    security_groups = List(
        Unicode(),
        config=True,
        help="Guard the server's port with these security groups, by name or id. Default: none named, so the project's `default`.",
    )
    availability_zone = Unicode(config=True, help="Place the server in this availability zone. Default: empty, the cloud chooses.")
    deployment_id = Unicode(
        config=True,
        help="""
        Mark this hub's servers in the cloud with this id, a UUID. Two hubs in one project need two ids.

        Default: made once and kept in `state_dir`.
        """,
    )
    state_dir = Unicode(
        ".hutch", config=True, help="Keep the keys for talking to agents, and the deployment id, in this folder. Default: `.hutch`."
    )
    agent_port = Int(8765, config=True, help="Reach the agent in a server at this TCP port. Default: 8765.")
    boot_timeout_seconds = Float(
        300, config=True, help="Give a server this many seconds from its creation until its agent listens. Default: 300."
    )
    stop_timeout_seconds = Float(
        # Nova gives a guest 60 s to end by itself
        90,
        config=True,
        help="Wait this many seconds for a server to be powered off before letting go of it. Default: 90.",
    )
    stop_by = Enum(
        ["power off", "shelve"],
        "power off",
        config=True,
        help="""
        Stop a server in this way.

        Default: "power off". A server that is off goes on to hold its share of the project's quota and its place on a host;
        "shelve" gives both back and keeps the disk as an image, and takes longer in both directions (set stop_timeout_seconds and
        boot_timeout_seconds to what your cloud needs to copy a disk).
        """,
    )
    fast_listing_seconds = Float(
        1.0, config=True, help="List the cloud's servers this often, in seconds, while something is changing. Default: 1."
    )
    slow_listing_seconds = Float(
        10.0, config=True, help="List the cloud's servers this often, in seconds, when nothing is changing. Default: 10."
    )
    # VMs need longer than JupyterHub's 60 s: the boot, then the notebook
    start_timeout = Int(600, config=True, help="Give a launch this many seconds in all. Default: 600.")
    default_url = Unicode("/lab", config=True, help="Open this page of the notebook server. Default: `/lab`.")

    @default("ip")
    def _default_ip(self) -> str:
        return "0.0.0.0"  # noqa: S104 - of the guest, where only its network's rules decide who comes in

    @default("env_keep")
    def _default_env_keep(self) -> list[str]:
        return []  # the hub's PATH and the like mean nothing in another machine

    @default("port")
    def _default_port(self) -> int:
        return 8888

    @default("deployment_id")
    def _default_deployment_id(self) -> str:
        path = Path(self.state_dir) / "deployment-id"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(uuid.uuid4()))
        return path.read_text().strip()

    @validate("places")
    def _valid_places(self, proposal: Any) -> dict[str, dict[str, Any]]:
        try:
            PLACES.validate_python(proposal["value"])
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise TraitError(f"OpenStackSpawner.places is not right ({wrong}).") from error
        return proposal["value"]

    def at(self, place: str, setting: str) -> Any:
        """What holds there: the place's own setting, else the spawner's."""
        return self.places.get(place, {}).get(setting, getattr(self, setting))
