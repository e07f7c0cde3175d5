"""Who may do what, and why: pure functions over records, no I/O.

Every rule answers with a `Decision`: allowed or refused, the rule's name, the sentence that people read, and the records that it
rests on. The rules follow VISA's (manual sections *Who may create what*, *Instance members*, *Quotas*), with one difference
throughout: what has expired is absent, and what a person holds adds up. `docs/access.md` shows the tables.
"""

from .desktops import Right, Standing, standing
from .facts import (
    ADMIN,
    UNLIMITED,
    Consent,
    Decision,
    Limit,
    Person,
    Place,
    PlanOffer,
    Quota,
    Terms,
    Usage,
    Visit,
    WhenOwnerLeaves,
    ref,
)
from .instances import ENTERING, MAY, TASKS, Action, Part, Task, may_act, may_run, parts_of
from .launches import (
    WITHOUT_EXPERIMENT,
    grounds_of,
    lifetime,
    may_add_cores,
    may_launch,
    may_own_another,
    may_pick,
    may_see,
    may_use_experiments,
    quota,
    unknown_experiments,
    unknown_person,
    unknown_plan,
)
from .sharing import SUPPORT_ROLES, may_become, told_of
