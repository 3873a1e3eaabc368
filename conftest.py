"""For every test of the core and of the plugins: one torch thread per process, and checked shapes.

Two pytest workers share two cores; threads of two processes would only wait for each other, and
results would depend on how many threads the machine happens to have.
"""

from __future__ import annotations

import os
import signal

import torch

from tests.shapes import check_shapes

torch.set_num_threads(1)
# a shell starts what it runs in the background with these ignored, and processes that tests start inherit it
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# what transformers and accelerate read when they are imported: no test or page reaches a network
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
check_shapes()  # before anything of ours is imported
