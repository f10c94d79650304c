"""The exceptions of the library.

::

    ApachewsError
     +-- ServerError        the socket file cannot be used: path, problem, remedy
     |    +-- SocketInUse   another producer listens there
     |    +-- NotASocket    the path is a file of another type
     |    +-- NotListening publish(): no producer listens there
     |    +-- PublishError  publish(): the producer did not answer
     |    +-- RelayError    the relay's address or library cannot be used
     +-- HistoryError       a history cannot store or read messages: path, problem
     +-- ServerClosed       dequeue() after close() and the last event
     +-- ConnectionClosed   a handler's client is gone: code, reason
     +-- MessageTooLarge    the relay does not carry the message: size, limit
     +-- NotAsked           Apache does not leave the decision to the producer
     +-- WireError          bytes that violate docs/reference/wire.md: reason, close code
     +-- StatusError        a document is not Apache's status: problem

Operating-system errors of the socket file (permission, missing directory) stay OSError, with
the path in them.
"""

from __future__ import annotations

__all__ = [
    "ApachewsError",
    "ConnectionClosed",
    "HistoryError",
    "MessageTooLarge",
    "NotASocket",
    "NotAsked",
    "NotListening",
    "PublishError",
    "RelayError",
    "ServerClosed",
    "ServerError",
    "SocketInUse",
    "StatusError",
    "WireError",
]


class ApachewsError(Exception):
    """Base of the library's exceptions.

    Example:
        >>> try:
        ...     client.accept("chat")
        ... except ApachewsError as error:
        ...     print(error)
        accept() with a subprotocol or headers needs SetEnv APACHEWS_ACCEPT producer in ...
    """


class ServerError(ApachewsError):
    """A socket file cannot be used.

    Attributes:
        path: the socket file.
        problem: what is wrong with it.
        remedy: what to do.

    Example:
        >>> try:
        ...     Server("/var/www/html/ws/index.html")
        ... except ServerError as error:
        ...     print(error.problem, "-", error.remedy)
        the file is not a socket - move it, or use another path
    """

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(path, problem, remedy)
        self.path = path
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


class SocketInUse(ServerError):
    """Another producer listens on the socket file.

    Example:
        >>> try:
        ...     Server("/var/www/html/ws/chat.ws", exclusive=True)
        ... except SocketInUse as error:
        ...     print(error)
        /var/www/html/ws/chat.ws: another producer listens here; stop it, or use another path
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, "another producer listens here", "stop it, or use another path")


class NotASocket(ServerError):
    """The path is a file of another type; it is left alone.

    Example:
        >>> try:
        ...     Server("/var/www/html/ws/index.html")
        ... except NotASocket as error:
        ...     print(error.path)
        /var/www/html/ws/index.html
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            "the file is not a socket",
            "move it, or use another path",
        )


class NotListening(ServerError):
    """No producer listens on the socket file, or the file does not exist.

    Example:
        >>> try:
        ...     publish("/var/www/html/ws/news.ws", "hello")
        ... except NotListening:
        ...     print("later, then")
        later, then
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, "no producer listens here", "start it, or check the path")


class PublishError(ServerError):
    """The producer exited before it answered, refused the message, or does not support PUBLISH.

    Example:
        >>> try:
        ...     publish("/var/www/html/ws/old.ws", "hello")
        ... except PublishError as error:
        ...     print(error.problem)
        the producer did not answer
    """

    def __init__(
        self,
        path: str,
        problem: str = "the producer did not answer",
        remedy: str = "it has exited, or its library is older than publish(): see its log",
    ) -> None:
        super().__init__(path, problem, remedy)


class RelayError(ServerError):
    """The relay's address cannot be used, or ``publish()`` does not reach it.

    A server whose relay is down raises nothing: see ``RelayLostEvent``.

    Attributes:
        path: the address, without a password.

    Example:
        >>> try:
        ...     Server("/var/www/html/ws/chat.ws", relay="http://localhost")
        ... except RelayError as error:
        ...     print(error.problem)
        unknown scheme
    """


class HistoryError(ApachewsError):
    """The file of the histories cannot be used, or has not stored a message.

    Attributes:
        path: the file.
        problem: what is wrong with it.

    Example:
        >>> print(HistoryError("/var/lib/chat/history.db", "database or disk is full"))
        /var/lib/chat/history.db: database or disk is full
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class MessageTooLarge(ApachewsError):
    """The relay does not carry a message of this size; no client has received it.

    Attributes:
        size_bytes: the message's.
        limit_bytes: ``relay_max_message_bytes`` of the server.

    Example:
        >>> error = MessageTooLarge(33_000_000, 1_048_576)
        >>> print(error)
        the message has 33000000 bytes, the relay carries 1048576; send a link to it, or ...
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return (
            f"the message has {self.size_bytes} bytes, the relay carries {self.limit_bytes};"
            " send a link to it, or raise relay_max_message_bytes of every server"
        )


class ServerClosed(ApachewsError):
    """The server was closed, and the last event was taken.

    Example:
        >>> server.close()
        >>> try:
        ...     while True:
        ...         event = server.dequeue()
        ... except ServerClosed as error:
        ...     print(error)
        the server is closed, and all its events were taken
    """

    def __str__(self) -> str:
        return "the server is closed, and all its events were taken"


class ConnectionClosed(ApachewsError):
    """The client of a handler is gone or being closed.

    Attributes:
        code, reason: see ``Event.code``.

    Example:
        >>> connection.close(1000)
        >>> try:
        ...     await connection.send("are you there?")
        ... except ConnectionClosed as error:
        ...     print("it is gone")
        it is gone
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"the connection is closed: {self.code} {self.reason}".rstrip()


class NotAsked(ApachewsError):
    """Apache has accepted the client itself, so that the producer cannot decide any more.

    Attributes:
        call: the call that failed.

    Example:
        >>> try:
        ...     event.reject(403)
        ... except NotAsked as error:
        ...     print(error.call)
        reject()
    """

    def __init__(self, call: str) -> None:
        super().__init__(call)
        self.call = call

    def __str__(self) -> str:
        return f"{self.call} needs SetEnv APACHEWS_ACCEPT producer in Apache's configuration"


class WireError(ApachewsError):
    r"""Bytes that violate the specification of the wire, docs/reference/wire.md.

    Attributes:
        reason: the violation.
        code: the close code of the answer.

    Example:
        >>> from apachews import wire
        >>> try:
        ...     wire.decode_close(b"\x03")
        ... except WireError as error:
        ...     print(error.code, error.reason)
        1002 CLOSE payload is 1 byte; it must be empty or at least 2
    """

    def __init__(self, reason: str, code: int = 1002) -> None:
        super().__init__(reason, code)
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        return f"{self.reason} (close code {self.code})"


class StatusError(ApachewsError):
    """A document is not the status of a process or of a status page.

    Attributes:
        problem: what is wrong with it.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"not an apachews status document: {self.problem}"
