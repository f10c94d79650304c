<?php
/** A page that notifies: whoever packs parcels sees each order at once. */
require __DIR__ . '/publish.php';

const SOCKET = '/var/www/html/notify/notify.ws';
const PACKER = 'ann';

$problem = '';
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $item = trim($_POST['item'] ?? '');
    if ($item === '' || strlen($item) > 200) {
        http_response_code(422);
        $problem = 'Say what to send, in at most 200 bytes.';
    } else {
        // … the order goes into the database here; to tell of it may fail, and must not
        // be what an order fails of.
        try {
            $path = getenv('NOTIFY_SOCKET') ?: SOCKET;
            $notice = json_encode(['title' => 'New order', 'text' => $item], JSON_INVALID_UTF8_SUBSTITUTE);
            $reached = apachews_publish($path, $notice, PACKER);
        } catch (RuntimeException $error) {
            error_log($error->getMessage());
            $reached = 0;
        }
        header('Location: ?' . http_build_query(['told' => $reached]), true, 303);
        exit;
    }
}
?>
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Order</title>
<h1>Order</h1>
<?php if (isset($_GET['told'])): ?>
<p>Thank you. <?= (int) $_GET['told'] ?> told.
<?php endif ?>
<form method="post">
  <label>Item <input name="item" maxlength="200" required></label>
  <button>Order</button>
  <?= htmlspecialchars($problem) ?>
</form>
