"""The machine: devices and hosts, the cache of compiled programs, files, the command line.

May import errors and version; no other room.
"""
