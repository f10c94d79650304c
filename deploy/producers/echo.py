"""The echo producer: sends every message back.  The seed's program, but for the path."""

from apachews import *
import sys

path = sys.argv[1] if len(sys.argv) > 1 else '/var/www/public_html/websocket.ws'
server = Server(path)
while True:
    event = server.dequeue()
    if event.type() == Event.Accept:
        pass
    elif event.type() == Event.ConnectionClosed:
        event.close()
    elif event.type() == Event.IO:
        data = event.read()
        if data == Event.ConnectionClosed:
            event.close()
        elif data == Event.Error:
            pass
        else:
            event.write(data)
    elif event.type() == Event.Error:
        pass
    elif event.type() == Event.NoData:
        pass
