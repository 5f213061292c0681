"""Every key of an experiment at its default. docs/reference_config.md says what each is for."""

from prune_jax.config.defaults import get_config

__all__ = ["get_config"]
