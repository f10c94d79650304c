<?php

// What a program is that was written for this API: its loop is the one to run unchanged.

require __DIR__ . '/../../autoload.php';

$path = $argv[1];
if (file_exists($path)) {
    unlink($path);
}

$ws = new apachews\Server($path);
while ($event = $ws->dequeue()) {
    switch ($event->type()) {
    case ApacheWSAcceptEvent:
        break;
    case ApacheWSIOEvent:
        $data = $event->read();
        switch ($data) {
            case ApacheWSError:
            case ApacheWSConnectionClosed:
                break;
            default:
                $event->write($data);
                break;
        }
        break;
    case ApacheWSNoData:
        break;
    case ApacheWSError:
        break;
    case ApacheWSConnectionClosed:
        break;
    }
}
