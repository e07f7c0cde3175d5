"""devcloud: a one-machine cloud that answers as OpenStack does. For demos and tests only.

It speaks the parts of Keystone v3, Nova 2.1, Glance v2 and Neutron v2.0 that Hutch uses, closely enough for an unmodified
openstacksdk: status codes, fault bodies, states that change while one looks, console logs, metadata, actions, microversions.
What it calls a server is a group of local processes on an address of its own in 127.0.0.0/8, with a home directory that
survives stop and start. There is no isolation whatever between such servers, nor between them and the machine: never put
anything on it that matters, and never let a stranger use it.

    python -m spawner.devcloud --state .hutch/devcloud --port 9500

writes ``clouds.yaml`` (clouds "devcloud", "devcloud-app", "devcloud-other", "devcloud-admin") into the state folder and
prints one line when it is ready. What it knows lives in that folder too and comes back at the next start.

Where to find what:

``app``        the wiring: one port, all services, the log of calls, faults on request
``keystone``, ``nova`` (with ``nova_*``), ``glance``, ``neutron``, ``placement``   one service each: what is asked, what is answered
``state``      the records and how they are kept
``lifecycle``  what happens to a server between two answers
``machine``    a booted server: its folder and its processes; ``pid1`` is the first process in each
``stub``       a booted server without processes, for thousands at a time
``control``    the switches for tests: faults, latency, quotas, misbehaving servers (POST /devcloud/...)
``process``    starts a devcloud from Python and stops it again
"""
