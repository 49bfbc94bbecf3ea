"""The private parts of jax that this code uses, for lack of public ones.

A new version of jax may move them; tests/system/test_jax_internals.py then names the one that broke. jax is imported
inside the functions, since some are called before it may start.
"""


def backends_started():
  """Whether jax has initialised its devices, after which a process cannot be forked."""
  from jax._src import xla_bridge
  return xla_bridge.backends_are_initialized()


def coordination_client():
  """The client of the service that connects several processes, or None before they have joined.

  Used of it: key_value_set, key_value_dir_get, key_value_delete and wait_at_barrier.
  """
  from jax._src import distributed
  return distributed.global_state.client


def on_a_pod():
  """Whether this is one of several TPU VMs of a pod, according to the metadata service of the machine."""
  from jax._src.clusters import cloud_tpu_cluster as tpu
  return (tpu.running_in_cloud_tpu_vm and tpu.GceTpuCluster.is_env_present()
          and tpu.GceTpuCluster.get_process_count() > 1)


def cluster(seconds):
  """(coordinator, number of processes, index of this one, its local devices) from the environment; None if unknown.

  Args:
    seconds: how long to wait for the services of a cluster.
  """
  from jax._src.clusters import ClusterEnv
  return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, seconds)
