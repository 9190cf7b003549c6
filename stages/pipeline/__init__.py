"""What joins the stages to DVC and Hydra: typed parameters, code fingerprints, provenance, the command line."""
