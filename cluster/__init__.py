"""Where the work runs: attach to Ray, check that a recipe fits.

Ray reads its authentication mode once, when it is first imported, so it is stated here, before any module of
this package imports Ray. A head node executes what anybody sends it; `token` is Ray's own protection and
is what a cluster should use. Whoever wants none sets RAY_AUTH_MODE=disabled himself.
"""

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # Ray Serve LLM imports vLLM in the driver
# Ray's C++ core writes to the driver's screen, among it one "E" line per actor pool that restarts its actors, which
# is what we ask for. Set it to `info` to see everything.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Logical CPUs let more processes start than there are cores, which is what we ask for too; Ray would warn each time.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")
