"""The sample tenant `market` in Python: one component with every role.

Each class is an interface that the component exports; `componentize-py` finds them in this module by their names.

Several instances of this run side by side, in the roles that the manifest gives them, and the host makes and drops them as
it likes: what one of them keeps in variables no other sees. What they share is in the tenant's state.
"""

from market_api import IncomingHandler
from market_client import ClientHandler
from market_filter import Filter
from market_job import Job

__all__ = ["ClientHandler", "Filter", "IncomingHandler", "Job"]
