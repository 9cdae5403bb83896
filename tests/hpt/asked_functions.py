"""Functions of a user that tests of the verifier ask, from its worker processes."""

from typing import Any

from hpt.verify import FunctionVerifier

FUNCTIONS = '''
import ctypes, fractions, json, os, subprocess, sys, time
from pathlib import Path

def equal(response, answer): return response == answer
def share(response, answer): return float(response)
def fraction(response, answer): return fractions.Fraction(response)
def nothing(response, answer): return None
def as_json(response, answer): return json.loads(response)
def fail(response, answer): raise KeyError("no " + answer)
def leave(response, answer): sys.exit(3)
def loaded(response, answer):
    return not sys.flags.hash_randomization if response == "fixed hashes" else response in sys.modules
def nap(response, answer): time.sleep(float(response)); return True
def hang(response, answer): time.sleep(600)
def allocate(response, answer): return len(bytearray(int(response) << 20)) > 0
def crash(response, answer): ctypes.string_at(0)
def chatter(response, answer): print("{}", flush=True); return not sys.stdin.read()
def say(response, answer): print(response, flush=True); return True
def flood(response, answer):
    print("\\x1b[2J" + answer, file=sys.stderr)
    for _ in range(1000): os.write(1, b"x" * 999 + b"\\n")
    return True
def print_and_kill_parent(response, answer):
    os.write(1, b"x" * 6000)
    os.kill(os.getppid(), 9)
    time.sleep(600)  # until the worker is ended too
def forge(response, answer):
    for descriptor in range(3, 30):
        try: os.write(descriptor, response.encode())
        except OSError: pass
    return True

def count(response, answer):
    with open(response, "a") as file: file.write("x")
    return True

def pid(response, answer):
    with open(response, "a") as file: file.write(f"{os.getpid()}\\n")
    return True

def pid_and_allocate(response, answer):
    pid(response, answer)
    return len(bytearray(int(answer) << 20)) > 0

def slow_at_first(response, answer):
    """Hangs where it is called the first time, leaving its pid, and is right at once where it is called again."""
    with open(response, "a") as file: file.write(f"{os.getpid()}\\n")
    if len(Path(response).read_text().split()) == 1: time.sleep(600)
    return True

def fork_away(response, answer):
    """Right, and leaves a process in a session of its own whose parent has ended."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(response).write_text(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    os.wait()
    return True

def hang_with_child(response, answer):
    child = subprocess.Popen(["sleep", "600"])
    Path(response).write_text(f"{os.getpid()} {os.getppid()} {child.pid}")
    child.wait()
'''


def asking(function: str, **limits: Any) -> FunctionVerifier:
    """A verifier that asks one of FUNCTIONS, which the fixture `importable` makes a module."""
    return FunctionVerifier(f"judging:{function}", **({"workers": 1, "timeout": 20.0, "memory_mb": 512} | limits))
