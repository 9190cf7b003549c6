"""What joins the stages to DVC and Hydra: typed parameters, code fingerprints, provenance, the command line."""

import os

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
TOLD_FOLDER = os.environ.get(CACHE_VARIABLE)
"""Where inductor was told to keep what it compiles; asked before anything imports torch, which sets the variable itself."""
