"""What goes inside every image: the agent that the hub talks to.

The hub reaches nothing else in an instance. This package imports nothing of the rest of Hutch and refers to itself only
relatively, so that a recipe can copy the folder into an image under any package name.

    agent.py      the HTTPS service, started as ``python -m images.guest``
    identity.py   its key and certificate, and whom it listens to
    session.py    one owner, one notebook: launch, keep, restart, stop
    desktop.py    their desktop: Xvnc and what runs on it (desktop_files)
    tunnel.py     the hub's way to it, beside the requests on the same port
    rfb.py        how the agent gets into Xvnc
    upkeep.py     what is started again whenever it ends
    nurse.py      starts the nursery, asks it, starts it again
    nursery.py    a process that has imported JupyterLab ahead, and forks notebooks from itself
    notebook.py   what runs in the forked process
    extension.py  what we add to the Jupyter server in it
    visitors.py   who is in it, and how somebody is sent away
    kernels.py    the process that bears a notebook's Python kernels
    wire.py       messages, and the file descriptors that travel with them, between these processes
    vitals.py     processor, memory and disk of the instance
"""
