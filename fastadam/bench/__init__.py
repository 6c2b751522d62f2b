"""How fast this machine trains, beside what it could do at the most and beside PyTorch.

    fastadam bench                      the command, in ``cli/bench.py``
    config.py                           what is measured and how long
    measure.py                          all of it, one part after the other
    machine.py                          the machine: its description, its limits
    adam.py  calls.py  steps.py         updates; the calls of one step; whole steps
    runs.py  startup.py                 whole runs, and first steps, as processes of their own
    peer.py                             PyTorch's side: the only module that imports it
    children.py  fresh.py  rounds.py    processes; turns of the two sides
    numbers.py  memory.py               medians, ratios, roofs; memory that is taken

Whatever is timed runs in a process of its own, one at a time: two OpenMP runtimes in one process disturb each
other, and so does a thread that spins while another is measured.
"""
