"""Loaded by every Python that finds this folder on its path: closes all sockets but those of loopback, and notes who wanted out."""
import os
import socket

_HERE = {"", "localhost", "::", "::1", "0.0.0.0", socket.gethostname()}


def _check(host):
    if isinstance(host, bytes): host = host.decode()
    if host is None or host in _HERE or host.startswith("127."): return
    with open(os.environ["ZENBOT_OFFLINE_LOG"], "a") as log: log.write(f"{host}\n")
    raise OSError(101, f"{host}: the network is closed for this test")


def _closed(method, place):
    def checked(self, *args):
        if isinstance(args[place], tuple): _check(args[place][0])
        return method(self, *args)
    return checked


def _looked_up(function):
    def checked(host, *args, **kwargs):
        _check(host)
        return function(host, *args, **kwargs)
    return checked


for _name, _place in (("connect", 0), ("connect_ex", 0), ("sendto", -1)): setattr(socket.socket, _name, _closed(getattr(socket.socket, _name), _place))
for _name in ("getaddrinfo", "gethostbyname"): setattr(socket, _name, _looked_up(getattr(socket, _name)))
