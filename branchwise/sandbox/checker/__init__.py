"""Judges a program from inside a sandbox; `harness` sends it there.

Two processes: one that knows the tests (`judge`), and one that runs the program and never sees them
(`program`). The second is forked before the first test is read, holds neither the channel of the
verdicts nor that of the tests, and cannot look into the first, which is not dumpable. The tests
call it over a socket (`solution`). What comes back is decoded as plain values (`wire`), or as
handles that equal no plain value (`proxy`), so that every comparison is made in the first, between
objects of its own.

It starts anew for each run, so it imports little: no `json`, no `ast`, no `typing`.
"""
