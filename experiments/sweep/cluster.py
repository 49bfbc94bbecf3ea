"""Where trials run: this machine, a Ray cluster, or job files for Slurm and for TPUs on Kubernetes.

The engine is given as a spec, as in a config: local, ray(cpus=4), 'slurm(partition=gpu, gpus=1)'. All run the same
commands.
"""
import math
import os
import shlex
import time
from typing import Any, NamedTuple

from diffusion.errors import InputError
from diffusion.setup import specs
from diffusion.system.files import write_atomic
from experiments.sweep import local
from experiments.sweep.trials import installed


class Engine(NamedTuple):
  """A place for trials: it either runs them, or writes job files for another program to run."""
  name: str
  run: Any = None    # as local.run
  write: Any = None  # (trials, workdir, jobs) -> instructions for the files it has written
  remote: bool = False  # whether trials run without access to this machine's files


def engine(spec):
  """The Engine of a spec.

  Raises:
    InputError: an unknown engine or argument, or an engine that is not installed.
  """
  try:
    return specs.resolve(dict(engine=dict(local=this_machine, ray=ray, slurm=slurm, jobset=jobset)), 'engine', spec)
  except InputError as error:
    raise InputError(str(error).replace('config.engine=', '--engine=')) from error


def this_machine():
  """N processes at a time on this machine."""
  return Engine('local', run=local.run)


# ---- Ray
def ray(cpus=1., gpus=0., address=''):
  """Tasks on a Ray cluster, each of which runs the command of one trial.

  The repository and the work directory must be on a file system shared by all nodes, at the same path.

  Args:
    cpus, gpus: resources of a trial.
    address: of a running cluster, as for ray.init; '': that of RAY_ADDRESS, or else a new one on this machine.
  """
  installed('ray', '--engine=ray', 'ray')

  def run(ask, tell, *, jobs, timeout, idle, retries, watch, show, tick=.5):
    import ray as cluster
    cwd = os.getcwd()
    paths = os.pathsep.join([cwd, *filter(None, [os.environ.get('PYTHONPATH')])])
    cluster.init(address=address or None, log_to_driver=False, logging_level='error',
                 include_dashboard=False if not address else None,
                 runtime_env=dict(env_vars=dict(PYTHONPATH=paths)))
    task = cluster.remote(_on_node).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    submit = lambda trial: task.remote(trial, cwd, timeout, idle, retries)
    jobs = jobs or max(1, int(cluster.cluster_resources().get('CPU', 1) // max(cpus, 1e-3)))
    try:
      return _ray_loop(cluster, submit, ask, tell, jobs, watch, show, tick)
    finally:
      cluster.shutdown()
  return Engine('ray', run=run)


def _on_node(trial, cwd, timeout, idle, retries):
  os.chdir(cwd)
  return local.attempts(trial, timeout, idle, retries)


def _ray_loop(cluster, submit, ask, tell, jobs, watch, show, tick):
  """local.run with tasks instead of processes; a task retries its trial itself."""
  at_work, given_up = {}, {}
  with local.stop_requests() as stopped:
    try:
      while not stopped:
        while len(at_work) < jobs and (trial := ask()):
          at_work[submit(trial)] = trial
        if not at_work:
          return None
        for done in cluster.wait(list(at_work), num_returns=len(at_work), timeout=tick)[0]:
          trial = at_work.pop(done)
          tell(trial, *_outcome(cluster, done, trial, given_up.pop(trial.name, '')))
        for task, trial in at_work.items():
          if trial.name not in given_up and (why := watch(trial)):
            given_up[trial.name] = why
            cluster.cancel(task)
        states = [(trial, local.state(trial.folder)) for trial in at_work.values()]
        show([local.Running(trial, None, 0, state['started'], state['attempts'])
              for trial, state in states if state.get('status') == 'running'])
    finally:
      for task in at_work:
        cluster.cancel(task)  # raises KeyboardInterrupt in the task, which stops the trial
      if at_work:
        cluster.wait(list(at_work), num_returns=len(at_work), timeout=local.GRACE)
  return stopped[0]


def _outcome(cluster, task, trial, why):
  """(status, reason) of a task that has ended; why: the reason it was given up, or ''."""
  try:
    return cluster.get(task)
  except Exception as error:  # cancelled, or the node was lost: state.json may not have the final status
    outcome = ('pruned', why) if why else ('failed', ' '.join(str(error).split())[:300])
    last = local.state(trial.folder)
    local.note(trial, outcome[0], last.get('attempts', 1), last.get('started', time.time()), outcome[1])
    return outcome


# ---- Slurm
def slurm(partition='', time='12:00:00', gpus=0, cpus=4, memory='', options=''):
  """Writes an array job with one task per trial, and the list of its commands.

  Args:
    partition, time, memory: as for sbatch; '': the default of the cluster.
    gpus, cpus: per task.
    options: further options of sbatch, separated by spaces: '--account=x --qos=y'.
  """
  chosen = {'partition': partition, 'time': time, 'gpus': gpus, 'cpus-per-task': cpus, 'mem': memory}
  chosen = [f'--{key}={value}' for key, value in chosen.items() if value] + options.split()

  def write(trials, workdir, jobs):
    folder = workdir / 'slurm'
    folder.mkdir(parents=True, exist_ok=True)
    log, commands = (os.path.abspath(folder / name) for name in ('%A_%a.log', 'commands.txt'))
    limit = f'%{jobs}' if jobs else ''
    script = '\n'.join([
      '#!/bin/bash', f'#SBATCH --job-name={workdir.name}', f'#SBATCH --array=1-{len(trials)}{limit}',
      f'#SBATCH --output={log}', '#SBATCH --open-mode=append', '#SBATCH --requeue',
      '#SBATCH --signal=B:TERM@120  # a trial that runs out of time saves, and resumes when it is submitted again',
      *(f'#SBATCH {option}' for option in chosen), 'set -eu', f'cd {shlex.quote(os.getcwd())}',
      f'eval "$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(commands)})"', ''])
    write_atomic(folder / 'commands.txt', ''.join(_locked(trial) + '\n' for trial in trials).encode())
    write_atomic(folder / 'sweep.sbatch', script.encode())
    return (f'{len(trials)} trials written. Submit them:  sbatch {folder / "sweep.sbatch"}\n'
            f'Report the results, at any time:  python -m experiments.report --workdir={workdir}\n'
            'The same command again writes the trials that are not finished.')
  return Engine('slurm', write=write)


def _locked(trial):
  """One line of bash that becomes the trial and holds its lock; it does nothing if the trial is already running."""
  quote = lambda name: shlex.quote(os.path.abspath(trial.folder / name))
  lock = quote('lock')  # emptied, since it may still name an earlier attempt
  run = f'exec {shlex.join(trial.command)} >>{quote("log.txt")} 2>&1'
  return f'exec 9>>{lock}; flock -w 1 9 || exit 0; : >{lock}; {run}'


# ---- TPUs on Kubernetes
def jobset(image, bucket, accelerator='tpu-v5-lite-podslice', topology='2x2', chips=4, restarts=3, directory='/app',
           queue=''):
  """Writes a JobSet for each trial: a TPU host that runs the command of the trial, with its folders in a bucket.

  It is one host, because the processes of a trial cannot yet be spread over several.

  Args:
    image: with this repository in `directory` and its requirements.
    bucket: gs://NAME/FOLDER, used instead of the work directory.
    accelerator, topology: as in GKE's node labels: tpu-v5-lite-podslice 2x2, tpu-v5p-slice 2x2x1, ..
    chips: per host; must equal the product of the topology.
    restarts: how often a trial is restarted after a host was lost; it resumes from its checkpoint.
    queue: of Kueue, if used.
  """
  try:
    total = math.prod(int(n) for n in topology.split('x'))
  except ValueError:
    total = 0
  if total < 1 or total != chips:
    raise InputError(f'topology={topology!r} with chips={chips} per host: expected one host, such as 2x2 with 4; '
                     'trials cannot use several hosts yet')
  if not bucket.startswith('gs://'):
    raise InputError(f'bucket={bucket!r}: expected gs://NAME/FOLDER')
  bucket = bucket.rstrip('/')

  def write(trials, workdir, jobs):
    import yaml
    path = workdir / 'jobset' / 'sweep.yaml'
    node = {'cloud.google.com/gke-tpu-accelerator': accelerator, 'cloud.google.com/gke-tpu-topology': topology}
    made = [_job(trial, image, bucket, directory, restarts, queue, chips, node) for trial in trials]
    write_atomic(path, yaml.safe_dump_all(made, sort_keys=False).encode())
    return (f'{len(trials)} trials written. Submit them:  kubectl apply -f {path}\n'
            'Fetch the results, at any time:  gcloud storage rsync -r --exclude=".*checkpoints.*" '
            f'{bucket}/trials {workdir}/trials\n'
            f'and report them:  python -m experiments.report --workdir={workdir}\n'
            'The same command again writes the trials that are not finished.')
  return Engine('jobset', write=write, remote=True)


def _job(trial, image, bucket, directory, restarts, queue, chips, node):
  """The JobSet of a trial. node: the labels of its node; the others: see `jobset`."""
  words = ['python', *(word.replace(str(trial.folder), f'{bucket}/trials/{trial.name}') for word in trial.command[1:])]
  container = dict(name='trial', image=image, workingDir=directory, command=words,
                   resources=dict(limits={'google.com/tpu': chips}))
  pod = dict(restartPolicy='Never', terminationGracePeriodSeconds=120, containers=[container], nodeSelector=node)
  job = dict(parallelism=1, completions=1, backoffLimit=0, template=dict(spec=pod))
  about = dict(name=f'trial-{trial.name.rpartition("_")[2]}', annotations={'trial': trial.name})
  labels = dict(labels={'kueue.x-k8s.io/queue-name': queue}) if queue else {}
  replicated = [dict(name='host', replicas=1, template=dict(spec=job))]
  return dict(apiVersion='jobset.x-k8s.io/v1alpha2', kind='JobSet', metadata=about | labels,
              spec=dict(failurePolicy=dict(maxRestarts=restarts), replicatedJobs=replicated))
