"""`python -m diffusion.main` in forks of one process that has imported what the command imports, and started nothing.

A command then has no imports to pay for. It is still a process of its own, with its own arguments, folder, output and
exit code, and it leaves by the usual shutdown of Python. Only the imports are shared, and the seed of Python's hashes.
"""
import contextlib
import gc
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys

LIMIT = 400  # seconds after which a command is killed


@contextlib.contextmanager
def server(env, root, folder):
  """Gives run(arguments, cwd) -> CompletedProcess, of one command at a time.

  Args:
    env: environment of the commands; that of BLAS is set here, for a process with threads cannot be forked.
    root: directory that holds the packages `diffusion` and `tests`.
    folder: where the output of the commands is kept.
  Raises:
    RuntimeError: the server ended; its stderr says why.
  """
  words = [sys.executable, '-m', 'tests.forks']
  env = {**env, 'OPENBLAS_NUM_THREADS': '1', 'OMP_NUM_THREADS': '1'}
  with subprocess.Popen(words, cwd=root, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    numbers = itertools.count()

    def run(arguments, cwd):
      number = next(numbers)
      outputs = [folder / f'{number}.out', folder / f'{number}.err']
      with contextlib.suppress(BrokenPipeError):
        print(json.dumps([arguments, str(cwd), *map(str, outputs)]), file=process.stdin, flush=True)
      code = process.stdout.readline()
      if not code:
        raise RuntimeError(f'the server of commands ended at {arguments}')
      return subprocess.CompletedProcess(arguments, int(code), *(path.read_text() for path in outputs))
    yield run


def serve():
  """In the server: answers each line on stdin with an exit code. In a fork: returns, to be the command."""
  import diffusion.commands  # and what it imports; not main, which each command runs anew
  import diffusion.system.platform
  import ml_collections.config_flags
  from diffusion.system import jax_internals
  gc.freeze()  # the collector of a fork leaves alone what was imported
  for line in sys.stdin:
    threads = os.listdir('/proc/self/task')
    if len(threads) > 1 or jax_internals.backends_started():
      raise RuntimeError(f'cannot fork with {len(threads)} threads or a started jax: an import has started them')
    child = os.fork()
    if not child:
      return become(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
  sys.exit()


def become(arguments, cwd, out, err):
  """Makes this process what `python -m diffusion.main` with these arguments starts as."""
  for number, path in enumerate((os.devnull, out, err)):
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(file, number)
    os.close(file)
  os.chdir(cwd)
  sys.path[0] = cwd
  sys.argv[1:] = arguments  # runpy sets the name
  signal.alarm(LIMIT)


if __name__ == '__main__':
  serve()
  runpy.run_module('diffusion.main', run_name='__main__', alter_sys=True)
