from dspy.adapters.types.citation import Citations as Citations
from dspy.adapters.types.decision import Choice as Choice
from dspy.adapters.types.decision import Noul as Noul
from dspy.adapters.types.document import Document as Document
