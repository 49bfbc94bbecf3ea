"""Where trials run: this machine, a Ray cluster, or job files for Slurm and for TPUs on Kubernetes.

The engine of a command line is a spec, as in a config: local, ray(cpus=4), 'slurm(partition=gpu, gpus=1)'. Each runs the same commands.
"""
import math
import os
import shlex
import time
from typing import Any, NamedTuple

from diffusion.errors import InputError
from diffusion.setup import specs
from diffusion.system.files import write_atomic
from experiments.sweep import local as here
from experiments.sweep.trials import installed


class Engine(NamedTuple):
  """A place for trials: one that runs them, or one that writes files by which somebody else does."""
  name: str
  run: Any = None    # as local.run
  write: Any = None  # (trials, workdir, jobs) -> what to do with the files it has written
  remote: bool = False  # whether trials run where this machine's files are not


def engine(spec):
  """The Engine of a spec.

  Raises:
    InputError: an unknown engine or argument, one that is not installed.
  """
  try:
    return specs.resolve(dict(engine=dict(local=local, ray=ray, slurm=slurm, jobset=jobset)), 'engine', spec)
  except InputError as error:
    raise InputError(str(error).replace('config.engine=', '--engine=')) from error


def local():
  """N processes at a time on this machine."""
  return Engine('local', run=here.run)


# ---- Ray
def ray(cpus=1., gpus=0., address=''):
  """Tasks on a Ray cluster, each of which runs one trial's command.

  The repository and the work directory must lie on a file system that all nodes share, at the same path.

  Args:
    cpus, gpus: what Ray keeps for a trial.
    address: of a running cluster, as for ray.init; '' the one of RAY_ADDRESS, or else a new one on this machine.
  """
  installed('ray', '--engine=ray', 'ray')

  def run(ask, tell, *, jobs, timeout, idle, retries, watch, show, tick=.5):
    import ray as cluster
    cwd = os.getcwd()
    paths = os.pathsep.join([cwd, *filter(None, [os.environ.get('PYTHONPATH')])])
    cluster.init(address=address or None, log_to_driver=False, logging_level='error', include_dashboard=False if not address else None,
                 runtime_env=dict(env_vars=dict(PYTHONPATH=paths)))
    task = cluster.remote(_on_node).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    jobs = jobs or max(1, int(cluster.cluster_resources().get('CPU', 1) // max(cpus, 1e-3)))
    try:
      return _ray_loop(cluster, lambda trial: task.remote(trial, cwd, timeout, idle, retries), ask, tell, jobs, watch, show, tick)
    finally:
      cluster.shutdown()
  return Engine('ray', run=run)


def _on_node(trial, cwd, timeout, idle, retries):
  os.chdir(cwd)
  return here.attempts(trial, timeout, idle, retries)


def _ray_loop(cluster, submit, ask, tell, jobs, watch, show, tick):
  """local.run with tasks in place of processes; a task tries its trial again by itself."""
  at_work, given_up = {}, {}
  with here.stop_requests() as stopped:
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
        states = [(trial, here.state(trial.folder)) for trial in at_work.values()]
        show([here.Running(trial, None, 0, state['started'], state['attempts']) for trial, state in states if state.get('status') == 'running'])
    finally:
      for task in at_work:
        cluster.cancel(task)  # a KeyboardInterrupt there, which stops the trial
      if at_work:
        cluster.wait(list(at_work), num_returns=len(at_work), timeout=here.GRACE)
  return stopped[0]


def _outcome(cluster, task, trial, why):
  """(status, reason) of a task that has ended; why: it was given up, or ''."""
  try:
    return cluster.get(task)
  except Exception as error:  # cancelled, or the node is lost: what the task could write of that is not how the trial ended
    outcome = ('pruned', why) if why else ('failed', ' '.join(str(error).split())[:300])
    last = here.state(trial.folder)
    here.note(trial, outcome[0], last.get('attempts', 1), last.get('started', time.time()), outcome[1])
    return outcome


# ---- Slurm
def slurm(partition='', time='12:00:00', gpus=0, cpus=4, memory='', options=''):
  """Writes an array job, one task a trial, and the list of its commands.

  Args:
    partition, time, memory: as sbatch takes them; '' leaves it to the cluster.
    gpus, cpus: of a task.
    options: further options of sbatch, separated by spaces: '--account=x --qos=y'.
  """
  asked = {'partition': partition, 'time': time, 'gpus': gpus, 'cpus-per-task': cpus, 'mem': memory}
  lines = [f'#SBATCH --{key}={value}' for key, value in asked.items() if value] + [f'#SBATCH {option}' for option in options.split()]

  def write(trials, workdir, jobs):
    folder = workdir / 'slurm'
    folder.mkdir(parents=True, exist_ok=True)
    where = lambda path: os.path.abspath(path)
    commands = ''.join(_locked(trial) + '\n' for trial in trials)
    script = '\n'.join(['#!/bin/bash', f'#SBATCH --job-name={workdir.name}', f'#SBATCH --array=1-{len(trials)}' + (f'%{jobs}' if jobs else ''),
                        f'#SBATCH --output={where(folder)}/%A_%a.log', '#SBATCH --open-mode=append', '#SBATCH --requeue',
                        '#SBATCH --signal=B:TERM@120  # a trial that runs out of time saves, and goes on when it is submitted again', *lines,
                        'set -eu', f'cd {shlex.quote(os.getcwd())}',
                        f'eval "$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(where(folder / "commands.txt"))})"', ''])
    write_atomic(folder / 'commands.txt', commands.encode())
    write_atomic(folder / 'sweep.sbatch', script.encode())
    return (f'{len(trials)} trials written. Submit them:  sbatch {folder / "sweep.sbatch"}\n'
            f'Look at what is there, at any time:  python -m experiments.report --workdir={workdir}\n'
            'The same command again writes those that are not finished.')
  return Engine('slurm', write=write)


def _locked(trial):
  """One line of bash that becomes the trial, holding its lock; where the trial is at work already, it does nothing."""
  quote = lambda name: shlex.quote(os.path.abspath(trial.folder / name))
  lock = quote('lock')  # emptied, as it may still say who an earlier attempt was
  return f'exec 9>>{lock}; flock -w 1 9 || exit 0; : >{lock}; exec {shlex.join(trial.command)} >>{quote("log.txt")} 2>&1'


# ---- TPUs on Kubernetes
def jobset(image, bucket, accelerator='tpu-v5-lite-podslice', topology='2x2', chips=4, restarts=3, directory='/app', queue=''):
  """Writes a JobSet for each trial: one host of TPUs runs the trial's command, and the folders are in a bucket.

  One host, as the program does not yet start as several processes that compute together.

  Args:
    image: with this repository in `directory` and its requirements.
    bucket: gs://NAME/FOLDER, which takes the place of the work directory.
    accelerator, topology: as GKE's node labels say: tpu-v5-lite-podslice 2x2, tpu-v5p-slice 2x2x1, ..
    chips: of a host; the topology's product must be as many.
    restarts: how often a trial is started again after a host was lost; it resumes from its checkpoint.
    queue: of Kueue, where there is one.
  """
  try:
    total = math.prod(int(n) for n in topology.split('x'))
  except ValueError:
    total = 0
  if total < 1 or total != chips:
    raise InputError(f'topology={topology!r} with chips={chips} a host: expected one host, such as 2x2 with 4; trials cannot use several hosts yet')
  if not bucket.startswith('gs://'):
    raise InputError(f'bucket={bucket!r}: expected gs://NAME/FOLDER')
  bucket = bucket.rstrip('/')

  def write(trials, workdir, jobs):
    import yaml
    path = workdir / 'jobset' / 'sweep.yaml'
    made = [_job(trial, image, bucket, directory, restarts, queue, chips, {
      'cloud.google.com/gke-tpu-accelerator': accelerator, 'cloud.google.com/gke-tpu-topology': topology}) for trial in trials]
    write_atomic(path, yaml.safe_dump_all(made, sort_keys=False).encode())
    return (f'{len(trials)} trials written. Submit them:  kubectl apply -f {path}\n'
            f'Fetch what is there, at any time:  gcloud storage rsync -r --exclude=".*checkpoints.*" {bucket}/trials {workdir}/trials\n'
            f'and look at it:  python -m experiments.report --workdir={workdir}\n'
            'The same command again writes those that are not finished.')
  return Engine('jobset', write=write, remote=True)


def _job(trial, image, bucket, directory, restarts, queue, chips, node):
  """The JobSet of a trial. node: the labels of its node; the others: see `jobset`."""
  words = ['python', *(word.replace(str(trial.folder), f'{bucket}/trials/{trial.name}') for word in trial.command[1:])]
  container = dict(name='trial', image=image, workingDir=directory, command=words, resources=dict(limits={'google.com/tpu': chips}))
  pod = dict(restartPolicy='Never', terminationGracePeriodSeconds=120, containers=[container], nodeSelector=node)
  job = dict(parallelism=1, completions=1, backoffLimit=0, template=dict(spec=pod))
  about = dict(name=f'trial-{trial.name.rpartition("_")[2]}', annotations={'trial': trial.name})
  return dict(apiVersion='jobset.x-k8s.io/v1alpha2', kind='JobSet',
              metadata=about | (dict(labels={'kueue.x-k8s.io/queue-name': queue}) if queue else {}),
              spec=dict(failurePolicy=dict(maxRestarts=restarts), replicatedJobs=[dict(name='host', replicas=1, template=dict(spec=job))]))
