"""Hydra finds this plugin through `hydra.plugins_path` in .dvc/config: it registers the resolvers that conf/ uses."""

from stages.pipeline.resolvers import register

register()
