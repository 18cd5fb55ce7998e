"""Runs a program of this virtual environment: `run.py PROGRAM ARGUMENTS`."""

import os
import sys

program = os.path.join(os.path.dirname(sys.executable), sys.argv[1])
os.execv(program, [program, *sys.argv[2:]])
