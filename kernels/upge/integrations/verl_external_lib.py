"""Installs the integration when it is imported, as verl does with the module that `external_lib` names.

actor_rollout_ref.model.external_lib=upge.integrations.verl_external_lib
"""

from .verl import install

install()
