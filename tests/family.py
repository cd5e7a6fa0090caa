"""temp"""

from tests.families import Family, _family as family
