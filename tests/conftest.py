"""One thread for every test and every process that a test starts: tiny models gain nothing from more, and two processes
of two threads each on two cores run six times slower than two of one."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
