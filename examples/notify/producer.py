"""Notifications: one group per user.

Run it with the path of its socket file as the argument.  Apache does the login (apache.conf),
and the group has the name of REMOTE_USER.  Every program that may write to the socket file can
``publish`` to a user, or to all: a cron job, a page in PHP, a program in Python.
"""

import sys

from apachews import Event, Server, wire

with Server(sys.argv[1]) as server:
    for event in server:
        if event.type() is Event.Accept:
            user = event.client().request.user
            if user is None:
                event.close(wire.POLICY_VIOLATION, "log in first")
            else:
                server.group(user).add(event.client())
