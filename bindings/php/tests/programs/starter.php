<?php

/**
 * A producer that starts a background program per message, and sends its process id.
 */

declare(strict_types=1);

require __DIR__ . '/../../autoload.php';

$server = new apachews\Server($argv[1]);
foreach ($server as $event) {
    if ($event->type() === ApacheWSIOEvent) {
        $event->write((string) exec('sleep 60 >/dev/null 2>&1 & echo $!'));
    }
}
