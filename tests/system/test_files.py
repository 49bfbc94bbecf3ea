"""What a process that was killed leaves is gone after the next one."""
import os
import signal
import subprocess
import sys

from diffusion.system.files import try_writing

KILLED = '''
import os, signal, sys
from etils import epath
from diffusion.system.files import try_writing
type(epath.Path('.')).unlink = lambda self, **options: os.kill(os.getpid(), signal.SIGKILL)
try_writing(sys.argv[1])
'''


def test_trying_to_write_leaves_nothing_of_a_process_that_was_killed_while_it_tried(tmp_path):
  for _ in range(2):
    done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
  assert len(os.listdir(tmp_path)) == 1
  try_writing(tmp_path)
  assert not os.listdir(tmp_path)
