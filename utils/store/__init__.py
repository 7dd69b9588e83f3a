"""The model store: what lies in weights/, by tag, with what is known about it."""

from utils.store.entries import Comparison, Entry
from utils.store.info import Info
from utils.store.store import Store
from utils.store.tags import Tag, parse_tag

__all__ = ["Comparison", "Entry", "Info", "Store", "Tag", "parse_tag"]
