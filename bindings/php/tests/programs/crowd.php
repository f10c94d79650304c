<?php

/**
 * Many clients at once: crowd.php SOCKET COUNT.
 *
 * Connects them one after the other; each sends its number and gets the echo, or is closed. Then
 * each accepted client sends again, which shows that all were connected at the same time.
 * Prints, as JSON, the number of clients served each time, and the close codes of the others.
 */

declare(strict_types=1);

use apachews\Tests\Bridge;
use apachews\Wire\Close;
use apachews\Wire\Frame;

require __DIR__ . '/../bootstrap.php';

$bridges = [];
$codes = [];
for ($number = 0; $number < (int) $argv[2]; $number++) {
    $bridge = new Bridge($argv[1]);
    $bridge->send(Frame::TEXT, (string) $number);
    $frame = $bridge->readFrame();
    if ($frame === [Frame::FIN | Frame::TEXT, (string) $number]) {
        $bridges[$number] = $bridge;
    } elseif ($frame !== null && $frame[0] === (Frame::FIN | Frame::CLOSE)) {
        $codes[] = Close::decode($frame[1])->code;
        $bridge->write(Frame::encode(Frame::CLOSE, $frame[1]));
        $bridge->leave();
    } else {
        exit("client $number got something else\n");
    }
}
$again = 0;
foreach ($bridges as $number => $bridge) {
    $bridge->send(Frame::TEXT, "again $number");
}
foreach ($bridges as $number => $bridge) {
    $again += (int) ($bridge->readText() === "again $number");
}
echo json_encode(['first' => count($bridges), 'again' => $again, 'codes' => array_count_values($codes)]), "\n";
