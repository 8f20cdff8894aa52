"""The daemon's end of the channel: agents dial it, and it knows them by their certificates alone."""

from certfan.daemon.channel.board import Board
from certfan.daemon.channel.server import Channel

__all__ = ["Board", "Channel"]
