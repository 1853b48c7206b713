"""Settings of every test process, made before Ray is imported anywhere."""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only; children inherit it
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
