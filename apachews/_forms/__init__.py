"""What the coroutines of ``apachews.aio`` and the threads of ``apachews.threads`` share."""
