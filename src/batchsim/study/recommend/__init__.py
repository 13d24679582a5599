"""Which of many configurations is the cheapest that attains an SLO, found by a race over replications.

`candidates` says what is compared, `draws` on which requests, `evidence` what a replication tells, `betting`
how sure many of them are, `race` who is run again and who is dropped, and `recommendation` what came of it.
"""

from batchsim.study.recommend.recommendation import CANDIDATES, RECOMMENDATION, Recommendation, recommend

__all__ = ["CANDIDATES", "RECOMMENDATION", "Recommendation", "recommend"]
