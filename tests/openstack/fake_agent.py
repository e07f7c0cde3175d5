"""Says to Neutron that the fake compute has a network agent: without a live one there, no port would be bound to it."""

from __future__ import annotations

import sys
import time

from neutron.agent import rpc
from neutron.common import config
from neutron.conf.agent import common as agent_config
from neutron_lib import constants, context
from neutron_lib.agent import topics
from oslo_config import cfg

REPORT_SECONDS = 20
STATE = {
    "binary": "neutron-linuxbridge-agent",
    "host": "fake",
    "topic": constants.L2_AGENT_TOPIC,
    "agent_type": constants.AGENT_TYPE_LINUXBRIDGE,
    "start_flag": True,
    "configurations": {
        "bridge_mappings": {"physnet1": "br-fake"},
        "interface_mappings": {},
        "tunnel_types": [],
        "tunneling_ip": None,
        "devices": 0,
        "extensions": [],
        "l2_population": False,
    },
}


def main() -> None:
    agent_config.register_agent_state_opts_helper(cfg.CONF)
    config.register_common_config_options()
    config.init(sys.argv[1:])
    config.setup_logging()
    reports = rpc.PluginReportStateAPI(topics.REPORTS)
    while True:
        try:
            reports.report_state(context.get_admin_context_without_session(), STATE, True)
            STATE.pop("start_flag", None)
            time.sleep(REPORT_SECONDS)
        except Exception as error:
            print(f"not reported: {error!r}", flush=True)
            time.sleep(1)


main()
