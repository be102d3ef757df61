"""Sends back what it receives."""


def serve(channel) -> None:
    while (message := channel.receive()) is not None:
        channel.send(message)
