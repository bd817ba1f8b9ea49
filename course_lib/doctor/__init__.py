"""Say what is wrong with this machine or this set-up, and what to do about it.

    python -m course_lib.doctor     # in the course's folder; exit status 0 if all is well

It runs where nothing else does: under an old Python, with packages missing or broken, in a terminal
without the course's environment (it then examines ``.venv``). So it needs the standard library
only, in the syntax of Python 3.7, and prints ASCII. Whatever could end Python, such as importing
torch, is tried in a second process with a time limit.

Where to find what, from the outside in:

- ``__main__``: the command line; another Python hands over to the one in ``.venv``.
- ``report``: which checks run, in which order, and how their findings read.
- ``machine``, ``packages``, ``course``, ``trials``: the checks, by topic.
- ``worker``: the second process, a script of its own; ``trials`` runs it and survives its death.
- ``here``: which Python and which environment this is, and the commands that mend it.
- ``finding``: what a check yields.
"""
