from typing import Any

# Classes whose brackets take options.
Choice: Any
Noul: Any
Score: Any
