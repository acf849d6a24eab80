"""A program ends at once, and loses nothing by it."""

import subprocess
import sys

ENDS = """
import atexit, sys, threading, time
from cascade.cli.program import leave

class Last:
    def __del__(self):
        print("taken down")

kept = Last()
atexit.register(print, "handler")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("output", end=" ")
leave(int(sys.argv[1]))
"""


def test_threads_end_handlers_run_and_output_arrives():
    done = subprocess.run([sys.executable, "-c", ENDS, "3"], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (3, "output thread\nhandler\n", "")


def test_a_program_says_what_it_did_by_its_exit_code():
    for words, code in ((["models"], 0), (["classes", "--model", "no-such-model"], 2)):
        done = subprocess.run([sys.executable, "-m", "cascade", *words], capture_output=True, text=True)
        assert done.returncode == code and bool(done.stdout) == (code == 0) and bool(done.stderr) == (code != 0)
