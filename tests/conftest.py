"""Settings of the whole suite."""

import os

from hypothesis import settings

# Before torch or numpy is imported: the tests are small, and threads that fight for the cores of
# a shared machine make them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: a busy machine is not a failing property. Failing examples are printed in full.
settings.register_profile("openmimo", deadline=None, print_blob=True)
settings.load_profile("openmimo")
