"""The sample tenant `market` in Python: one component with every role.

Each class is an interface that the component exports. `componentize-py` finds them in this module by their names.

Several instances of this run side by side, in the roles that the manifest gives them. The host makes and drops them as
it likes. An instance does not see the variables of another: they share only the tenant's state.
"""

from market_api import IncomingHandler
from market_client import ClientHandler
from market_filter import Filter
from market_job import Job

__all__ = ["ClientHandler", "Filter", "IncomingHandler", "Job"]
