"""The private parts of jax that this code uses, for want of public ones. A new jax may move them: tests/system/test_jax_internals.py says which.

jax is imported at the call, for some of this is asked before it may start.
"""


def backends_started():
  """Whether jax has looked for devices, after which a process cannot be forked."""
  from jax._src import xla_bridge
  return xla_bridge.backends_are_initialized()


def coordination_client():
  """The client of the service by which processes found each other, None before they did: key_value_set, key_value_dir_get,
  key_value_delete and wait_at_barrier."""
  from jax._src import distributed
  return distributed.global_state.client


def on_a_pod():
  """Whether this is a TPU VM of several, of which not the environment tells but a service of the machine."""
  from jax._src.clusters import cloud_tpu_cluster as tpu
  return (tpu.running_in_cloud_tpu_vm and tpu.GceTpuCluster.is_env_present()
          and tpu.GceTpuCluster.get_process_count() > 1)


def cluster(seconds):
  """(coordinator, number of processes, which one this is, its local devices) by the environment; None for what it does not say.

  Args:
    seconds: how long to wait for the services of a cluster.
  """
  from jax._src.clusters import ClusterEnv
  return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, seconds)
