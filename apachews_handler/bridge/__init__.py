"""One thread of an Apache child: sockets and epoll."""
